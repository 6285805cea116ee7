"""Products are in the policy's type; parameters and reductions are in float32."""

from collections import defaultdict

import jax
import jax.numpy as jnp
import pytest

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import policy


def operand_types(jaxpr, found=None):
    """Primitive -> the types of all its operands, anywhere in a jaxpr."""
    found = defaultdict(set) if found is None else found
    for equation in jaxpr.eqns:
        found[equation.primitive.name] |= {operand.aval.dtype.name for operand in equation.invars}
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                operand_types(inner.jaxpr, found)
    return found


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_products_are_in_the_compute_type_and_the_rest_in_float32(name):
    config = TransformerConfig(layers=1, width=8, heads=2, dropout=0.0, remat="none")
    model = Transformer(config, 16, 4, policy(name).compute)
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert jnp.dtype(policy(name).parameters).name == "float32"

    def forward(params):
        hidden = model.apply({"params": params}, tokens, tokens)
        return model.apply({"params": params}, hidden, method=model.logits)

    types = operand_types(jax.make_jaxpr(forward)(params).jaxpr)
    assert types["dot_general"] == {name}
    assert types["exp"] == {"float32"}  # softmax
    assert types["rsqrt"] == {"float32"}  # LayerNorm
    assert jax.eval_shape(forward, params).dtype == jnp.float32


def test_an_unknown_policy_is_refused_with_the_choices():
    with pytest.raises(InputError, match="precision 'half' is unknown; choose from float32, bf"):
        policy("half")
