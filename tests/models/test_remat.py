"""Policies change only what is kept and what is computed again."""

import dataclasses

import jax
import numpy as np
import pytest

import tiny
from cogview_jax.models.config import REMAT
from cogview_jax.models.implementation import Implementation
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.precision import policy

ROWS = 4
#: With these options the programs differ as much, and compile in half the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def loss_of(remat, attention):
    """Returns the loss of tiny sequences as a function of the parameters, with dropout."""
    config = dataclasses.replace(
        tiny.TRANSFORMER, remat=remat, attention=attention, dropout=0.1, window=4, pivots=9
    )
    objective = tiny.transformer_objective(config)
    batch, rows, key = tiny.sequences(0, ROWS), np.arange(ROWS), jax.random.key(1)
    return lambda params: objective.sums(params, (), batch, rows, key).loss


@pytest.fixture(scope="module")
def params():
    return tiny.start(tiny.transformer_objective()).params


def kept_bytes(loss, params):
    """Counts the bytes that the forward pass keeps for the backward pass, except parameters."""
    residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
    return total - sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def operations(jaxpr, times=1):
    """Lists the names of the operations of a program that have a result, and of its kernels."""
    names = []
    for equation in filter(lambda equation: equation.outvars, jaxpr.eqns):
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        kernel = equation.primitive.name == "pallas_call"
        name = equation.params["name"] if kernel else equation.primitive.name
        names += times * [name]
        for value in equation.params.values():
            for sub in value if isinstance(value, (tuple, list)) else (value,):
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    names += operations(sub, inner)
    return names


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_gradients_do_not_depend_on_the_policy(attention, params):
    expected, *others = (
        jax.jit(jax.grad(loss_of(remat, attention))).lower(params).compile(QUICK)(params)
        for remat in REMAT
    )
    for found in others:
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_what_is_kept_and_what_is_computed_again_are_in_order(attention, params):
    losses = {remat: loss_of(remat, attention) for remat in REMAT}
    memory = [kept_bytes(loss, params) for loss in losses.values()]
    assert memory == sorted(memory, reverse=True)
    assert len(set(memory)) == len(REMAT)
    programs = [jax.make_jaxpr(jax.grad(loss))(params).jaxpr for loss in losses.values()]
    work = [operations(program).count("dot_general") for program in programs]
    assert work == sorted(work)
    # "dots" computes no product with weights again, and "full" computes all of them again.
    layers = tiny.TRANSFORMER.layers
    assert work[-1] - work[REMAT.index("dots")] >= 4 * layers


def test_kept_bytes_are_those_of_the_description(params):
    """Beyond "full", save-attention keeps 4 D and dots 10 D numbers a token and layer.

    Both keep two more for each head, the maximum and the sum of its softmax.
    """
    width, layers = tiny.TRANSFORMER.width, tiny.TRANSFORMER.layers
    tokens = ROWS * tiny.sequences(0, 1).tokens.shape[1]
    memory = {remat: kept_bytes(loss_of(remat, "dense"), params) for remat in REMAT}
    unit, softmax = 4 * layers * tokens * width, 4 * layers * tokens * 2 * tiny.TRANSFORMER.heads
    # Policies also differ in a bias or two.
    assert memory["save-attention"] - memory["full"] == pytest.approx(4 * unit + softmax, rel=0.02)
    assert memory["dots"] - memory["full"] == pytest.approx(10 * unit + softmax, rel=0.02)


def test_an_unknown_policy_is_refused():
    with pytest.raises(
        InputError, match="remat 'some': choose from none, dots, save-attention, full"
    ):
        dataclasses.replace(tiny.TRANSFORMER, remat="some")


@pytest.mark.parametrize(
    ("kernel", "forward", "backward"),
    [
        ("cudnn", "dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper"),
        ("splash", "splash_mha_fwd_residuals", "splash_mha_dkv_no_residuals"),
    ],
)
@pytest.mark.parametrize(
    ("remat", "runs"), [("none", 1), ("dots", 1), ("save-attention", 1), ("full", 2)]
)
def test_a_fused_kernel_runs_again_only_where_nothing_is_kept(
    remat, runs, kernel, forward, backward, monkeypatch, params
):
    """The kernel is traced but not run, so neither a GPU nor a TPU is needed."""
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000
    )
    config = dataclasses.replace(tiny.TRANSFORMER, remat=remat)
    programs = Implementation(kernel, "layers", "gpu" if kernel == "cudnn" else "tpu")
    objective = tiny.transformer_objective(config, policy("bfloat16"), programs)
    batch, rows, key = tiny.sequences(0, ROWS), np.arange(ROWS), jax.random.key(1)
    loss = jax.grad(lambda params: objective.sums(params, (), batch, rows, key).loss)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        found = operations(jax.make_jaxpr(loss)(params).jaxpr)
    assert found.count(backward) == config.layers
    assert found.count(forward) == runs * config.layers
