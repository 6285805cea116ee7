"""Attention in blocks equals attention written out, and computes half of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.models.attention import attention_scores, attention_weights, causal_mask
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.dropout import dropout
from cogview_jax.models.implementation import Implementation
from cogview_jax.models.kernels.block_attention import BlockAttention
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.sharding import unbox

B, N, T, H = 2, 3, 37, 16


def inputs(dtype=jnp.float32, length=T, scale=3.0):
    """Queries, keys, values, and the gradient of the output."""
    drawn = np.random.default_rng(1).standard_normal((4, B, N, length, H))
    drawn[0] *= scale
    return [jnp.asarray(x, dtype) for x in drawn]


def written_out(alpha=32.0, rate=0.0, key=None, dtype=jnp.float32):
    def attend(queries, keys, values):
        scores = attention_scores(queries, keys, alpha, dtype)
        weights = attention_weights(scores, causal_mask(queries.shape[2]), alpha)
        if key is not None:
            weights = dropout(weights, rate, key)
        return jnp.einsum("bnts,bnsh->bnth", weights.astype(values.dtype), values)

    return attend


def in_blocks(block, alpha=32.0, rate=0.0, key=None, dtype=jnp.float32):
    attention = BlockAttention(block, alpha, dtype, rate)
    return lambda queries, keys, values: attention(queries, keys, values, key)


def with_gradients(function, queries, keys, values, upstream):
    """The output and the gradients of its product with `upstream`."""
    y, pullback = jax.vjp(function, queries, keys, values)
    return [np.asarray(x, np.float64) for x in (y, *pullback(upstream.astype(y.dtype)))]


def test_it_is_causal_softmax_attention():
    queries, keys, values, _ = inputs()
    y = np.asarray(in_blocks(8)(queries, keys, values))
    for b, n in np.ndindex(B, N):
        q, k, v = (reference.float64(x[b, n]) for x in (queries, keys, values))
        expected = reference.attention_weights(q, k, np.tril(np.ones((T, T), bool))) @ v
        np.testing.assert_allclose(y[b, n], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("alpha", [1.0, 32.0])
@pytest.mark.parametrize(("length", "block"), [(1, 8), (5, 8), (T, 8), (T, 7), (T, T), (T, 1000)])
def test_gradients_are_those_of_attention_written_out(length, block, alpha):
    arrays = inputs(length=length)
    found = with_gradients(in_blocks(block, alpha), *arrays)
    expected = with_gradients(written_out(alpha), *arrays)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("block", [8, 100])
def test_the_same_weights_are_dropped(block):
    arrays, key = inputs(), jax.random.key(3)
    found = with_gradients(in_blocks(block, rate=0.3, key=key), *arrays)
    expected = with_gradients(written_out(rate=0.3, key=key), *arrays)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())
    assert not np.allclose(found[0], with_gradients(in_blocks(block), *arrays)[0], atol=0.1)


@pytest.mark.parametrize(
    ("dtype", "softmax"),
    [(jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float32), (jnp.float16, jnp.float16)],
)
def test_it_is_as_near_to_float32_as_attention_written_out(dtype, softmax):
    rounded = inputs(dtype)
    exact = with_gradients(written_out(), *(x.astype(jnp.float32) for x in rounded))
    found = with_gradients(in_blocks(8, dtype=softmax), *rounded)
    slow = with_gradients(written_out(dtype=softmax), *rounded)
    for mine, theirs, true in zip(found, slow, exact, strict=True):
        error, yardstick = (np.linalg.norm(x - true) / np.linalg.norm(true) for x in (mine, theirs))
        assert error < max(1.2 * yardstick, float(jnp.finfo(dtype).eps))


def test_pb_relax_keeps_what_overflows_without_it():
    """Scores far above 65,504 and a float16 softmax: only divided by alpha do they fit."""
    queries, keys, values, upstream = inputs(jnp.float16, scale=1e4)
    arrays = queries, 8 * keys, values, upstream / 100
    relaxed = with_gradients(in_blocks(8, 32.0, dtype=jnp.float16), *arrays)
    assert all(np.isfinite(x).all() for x in relaxed)
    plain = with_gradients(in_blocks(8, 1.0, dtype=jnp.float16), *arrays)
    assert not all(np.isfinite(x).all() for x in plain)


def test_it_neither_computes_nor_keeps_the_hidden_half():
    arrays = [jnp.zeros((1, 2, 512, 64))] * 3

    def work(function):
        both = jax.jit(lambda *a: with_vjp(function, *a)).lower(*arrays).compile()
        return both.cost_analysis()["flops"]

    def with_vjp(function, *a):
        y, pullback = jax.vjp(function, *a)
        return y, pullback(y)

    # 9 of 16 parts of the scores, in 7 products instead of 6: .66.
    assert work(in_blocks(64)) < 0.7 * work(written_out())
    kept = jax.eval_shape(lambda *a: jax.vjp(in_blocks(64), *a)[1], *arrays)
    # Queries, keys, values and the output, and two numbers for each query.
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) == 512 * 2 * (4 * 64 + 2)


@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_model_trains_the_same_with_it(rate, remat):
    config = TransformerConfig(
        layers=2, width=32, heads=2, dropout=rate, attention_dropout=rate, remat=remat
    )
    length = 300  # two blocks
    tokens = np.random.default_rng(0).integers(0, 100, (2, length))
    positions = np.broadcast_to(np.arange(length), tokens.shape)
    rngs = {"dropout": jax.random.key(5)} if rate else {}
    found = []
    for attention in ("blocks", "xla"):
        model = Transformer(
            config, 100, length, implementation=Implementation(attention, "layers", "cpu")
        )
        shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, positions)["params"])
        params = jax.tree.map(jnp.asarray, reference.random_like(shapes, 2))

        def loss(params, model=model):
            return jnp.sum(model.apply({"params": params}, tokens, positions, rngs=rngs)[:, ::7])

        found.append(jax.tree.leaves(jax.value_and_grad(loss)(params)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
