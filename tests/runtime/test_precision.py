"""Products and reductions are in the policy's types; parameters are in float32."""

import subprocess
import sys
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layernorm import LayerNorm
from cogview_jax.models.linear import Linear
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import POLICIES, SAMPLING, policy, policy_of
from cogview_jax.runtime.sharding import unbox


def operand_types(jaxpr, found=None):
    """Primitive -> the types of all its operands, anywhere in a jaxpr."""
    found = defaultdict(set) if found is None else found
    for equation in jaxpr.eqns:
        found[equation.primitive.name] |= {operand.aval.dtype.name for operand in equation.invars}
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                operand_types(inner.jaxpr, found)
    return found


@pytest.mark.parametrize(
    ("name", "compute", "reductions"),
    [
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "float16", "float32"),
        ("float16_pure", "float16", "float16"),
    ],
)
def test_products_and_reductions_are_in_the_types_of_the_policy(name, compute, reductions):
    config = TransformerConfig(layers=1, width=8, heads=2, dropout=0.0, remat="none")
    model = Transformer(config, 16, 4, policy(name))
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert jnp.dtype(policy(name).parameters).name == "float32"

    def forward(params):
        hidden = model.apply({"params": params}, tokens, tokens)
        return model.apply({"params": params}, hidden, method=model.logits)

    types = operand_types(jax.make_jaxpr(forward)(params).jaxpr)
    assert types["dot_general"] == {compute}
    assert types["exp"] == {reductions}  # softmax
    assert types["rsqrt"] == {reductions}  # LayerNorm
    assert jax.eval_shape(forward, params).dtype == jnp.float32


def test_an_unknown_policy_is_refused_with_the_choices():
    with pytest.raises(InputError, match="precision 'half' is unknown; choose from float32, bf"):
        policy("half")


def test_a_type_names_the_policy_that_reduces_in_float32():
    assert policy_of(jnp.float16) == policy_of("float16") == policy("float16")
    assert policy_of(np.dtype("float32")).reductions == jnp.float32
    with pytest.raises(InputError, match="precision 'int8' is unknown"):
        policy_of(jnp.int8)


def test_8_bits_are_for_sampling_alone():
    assert [name for name in SAMPLING if policy_of(name).int8_kernels] == ["int8"]
    with pytest.raises(InputError, match=r"choose from .*float16_pure; int8 is for sampling alone"):
        policy("int8")


def test_float16_alone_needs_a_loss_scale():
    assert [name for name in POLICIES if policy(name).scales] == ["float16", "float16_pure"]


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_commands_offer_every_policy(root, command):
    """They list them themselves, so that --help needs no jax."""
    show = "print(*flags.FLAGS['precision'].parser.enum_values)"
    code = f"import cogview_jax.{command}; from absl import flags; {show}"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True)
    assert result.stdout.split() == list(SAMPLING)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float16_pure"])
def test_gradients_of_biases_and_scales_are_sums_in_float32(name):
    """16 bits stop counting at a few hundred: 4,096 positions that all pull one way show it."""
    positions = 4096
    x = jnp.ones((1, positions, 4), policy(name).compute)
    linear = Linear((4,), ("embed", "mlp"), 0.1, policy(name).compute)
    norm = LayerNorm(dtype=policy(name).compute, reductions=policy(name).reductions)
    for module, share in ((linear, 1 / 64), (norm, 1 / 64)):
        params = unbox(module.init(jax.random.key(0), x)["params"])

        def loss(params, module=module, share=share):
            return jnp.sum(module.apply({"params": params}, x).astype(jnp.float32)) * share

        gradient = jax.jit(jax.grad(loss))(params)["bias"]
        np.testing.assert_array_equal(gradient, np.full(4, positions * share))


def test_64_bits_are_refused():
    jax.config.update("jax_enable_x64", True)
    try:
        with pytest.raises(InputError, match="jax_enable_x64 is on, but this program computes in"):
            policy_of(jnp.float32)
    finally:
        jax.config.update("jax_enable_x64", False)
