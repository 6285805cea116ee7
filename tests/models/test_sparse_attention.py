"""Three-region sparse attention equals dense attention under a mask, also with its cache."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

import reference
from cogview_jax.models.attention import Attention, KeyValues, attention_scores
from cogview_jax.models.sparse_attention import PivotCache, ThreeRegions, pivot_bias
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.sharding import constrain, spec

B, N, T, H, W, BLOCKS, P = 2, 3, 29, 8, 4, 3, 7
PIVOTS = np.array([[0, 1, 2, 9, 14, 20, 27], [0, 4, 5, 6, 17, T, T]], np.int32)  # T: missing
REGIONS = ThreeRegions(PIVOTS, W, BLOCKS)


def keep(weights, number):
    return weights


@pytest.fixture(scope="module")
def inputs():
    generator = np.random.default_rng(0)
    return [generator.standard_normal((B, N, T, H)).astype(np.float32) * 2 for _ in range(3)]


@pytest.fixture(scope="module")
def dense_mask():
    return np.stack([reference.sparse_mask(T, row, W, BLOCKS) for row in PIVOTS])[:, None]


def sparse(queries, keys, values, alpha=32.0, regions=REGIONS):
    return regions.attend(queries, KeyValues(keys, values), alpha, jnp.float32, keep)


def dense(queries, keys, values, mask):
    scores = jnp.where(mask, attention_scores(queries, keys, 1.0), -jnp.inf)
    return jnp.einsum("bnts,bnsh->bnth", jax.nn.softmax(scores), values)


def test_who_sees_whom_by_hand():
    """Blocks have two tokens, a query sees its own block and one before; pivots are 0, 3 and 4."""
    expected = [
        "x.........",
        "xx........",
        "xxx.......",
        "xxxx......",
        "x.xxx.....",
        "x.xxxx....",
        "x..xxxx...",
        "x..xxxxx..",
        "x..xx.xxx.",
        "x..xx.xxxx",
    ]
    pivots = np.array([[0, 3, 4, 10]], np.int32)
    same, one_hot = np.zeros((1, 1, 10, 10), np.float32), np.eye(10, dtype=np.float32)[None, None]
    visible = sparse(same, same, one_hot, regions=ThreeRegions(pivots, 2, 2))[0, 0] > 0
    assert ["".join(".x"[int(x)] for x in row) for row in visible] == expected
    mask = reference.sparse_mask(10, [0, 3, 4], 2, 2)
    assert ["".join(".x"[int(x)] for x in row) for row in mask] == expected


@pytest.mark.parametrize("alpha", [1.0, 32.0])
def test_equals_masked_dense_attention(inputs, dense_mask, alpha):
    result = np.asarray(sparse(*inputs, alpha))
    queries, keys, values = reference.float64(inputs)
    for b, n in np.ndindex(B, N):
        weights = reference.attention_weights(queries[b, n], keys[b, n], dense_mask[b, 0])
        np.testing.assert_allclose(result[b, n], weights @ values[b, n], atol=3e-6)


def test_gradients_equal_those_of_masked_dense_attention(inputs, dense_mask):
    upstream = np.random.default_rng(1).standard_normal((B, N, T, H)).astype(np.float32)

    def gradients(attention):
        return jax.grad(lambda x: jnp.sum(attention(*x) * upstream))(inputs)

    ours, expected = gradients(sparse), gradients(lambda *x: dense(*x, dense_mask))
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 4, 12, 13])
def test_lengths_of_any_size(inputs, length):
    """The lengths are less than a block, a block, a whole window, and one more."""
    part = [x[:, :, :length] for x in inputs]
    mask = np.stack([reference.sparse_mask(length, row, W, BLOCKS) for row in PIVOTS])[:, None]
    np.testing.assert_allclose(sparse(*part), dense(*part, mask), atol=3e-6)


def test_gradients_in_half_precision_add_up_in_float32():
    """The gradient of a pivot is a sum over 200 blocks, whose last terms bfloat16 would lose."""
    size, length = 2, 400
    values = np.zeros((1, 1, length, 1))
    regions = ThreeRegions(np.array([[0]], np.int32), size, 1)
    same = jnp.zeros((1, 1, length, 1), jnp.bfloat16)

    def total(values):
        cache = KeyValues(same, values)
        return jnp.sum(regions.attend(same, cache, 1.0, jnp.float32, keep).astype(jnp.float32))

    gradient = jax.grad(total)(jnp.asarray(values, jnp.bfloat16))[0, 0, 0, 0]
    # Queries 0 and 1 see 1 and 2 keys; those of later blocks see 2 and 3.
    expected = 1 + 1 / 2 + (length / size - 1) * (1 / 2 + 1 / 3)
    assert float(gradient) == pytest.approx(expected, rel=2**-7)


def test_float16_holds_the_relaxed_scores_and_not_the_plain_ones(inputs, dense_mask):
    queries, keys, values = (x.astype(np.float16) for x in inputs)
    queries, keys = queries * 30, keys * 400
    keys[:, :, 0] = queries[:, :, 0] * 15

    def result(alpha):
        return REGIONS.attend(queries, KeyValues(keys, values), alpha, jnp.float16, keep)

    assert not np.isfinite(result(1.0)).all()
    relaxed = result(32.0)
    assert relaxed.dtype == jnp.float16
    exact = sparse(*(x.astype(np.float32) for x in (queries, keys, values)))
    assert np.isfinite(relaxed).all()
    assert np.mean(np.abs(relaxed - exact) < 0.05) > 0.95


def test_sums_of_weights_need_not_fit_half_precision():
    """Of 1,024 values of 100 with equal scores, the sum overflows float16 and the mean does not."""
    same, values = np.zeros((1, 1, 1024, 1), np.float16), np.full((1, 1, 1024, 1), 100, np.float16)
    regions = ThreeRegions(np.zeros((1, 1), np.int32), 1024, 1)
    y = regions.attend(same, KeyValues(same, values), 32.0, jnp.float16, keep)
    np.testing.assert_allclose(y, 100, rtol=2e-3)


def test_nothing_of_the_size_of_length_squared_is_made():
    x = jnp.zeros((1, 1, 512, 4))
    regions = ThreeRegions(jnp.zeros((1, 8), jnp.int32), 16, 2)
    gradient = jax.grad(lambda x: jnp.sum(sparse(x, x, x, regions=regions)))
    assert "512x512" not in jax.jit(gradient).lower(x).as_text()
    dense_gradient = jax.grad(lambda x: jnp.sum(dense(x, x, x, True)))
    assert "512x512" in jax.jit(dense_gradient).lower(x).as_text()


def test_rows_and_heads_stay_on_their_devices():
    """Neither pass exchanges anything between devices."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def gradients(x, pivots):
        def total(x):
            y = sparse(x, x, x, regions=ThreeRegions(pivots, W, BLOCKS))
            return jnp.sum(constrain(y, "batch", "heads", "sequence", None) ** 2)

        return jax.grad(total)(x)

    x, pivots = np.ones((8, 4, T, H), np.float32), np.tile(PIVOTS, (4, 1))
    rows = NamedSharding(mesh, spec(("batch",)))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, spec(("batch", "heads"))))
        compiled = jax.jit(gradients).lower(x, jax.device_put(pivots, rows)).compile()
        text = compiled.as_text()
    assert not re.findall(r" (all-\w+|collective-\w+|reduce-scatter)\(", text)
    assert compiled.output_shardings.spec == x.sharding.spec


def test_dropout_of_weights_differs_by_block_head_and_query():
    """Scores are equal and values are 1, so the output counts the keys that were kept."""
    width, length = 8, 40
    params = {
        "qkv": {"kernel": np.zeros((width, 3, width)), "bias": np.ones((3, width))},
        "out": {"kernel": np.eye(width), "bias": np.zeros(width)},
    }
    regions = ThreeRegions(
        np.full((1, 1), length, np.int32), 4, 1
    )  # without pivots a query sees 1 to 4 keys
    layer = Attention(width, 1.0, 0.5, 0.02, 0.02)
    x = jnp.zeros((1, length, width))

    def counts(**rngs):
        y = layer.apply({"params": params}, x, regions, rngs=rngs)[0][0]
        return np.asarray(y) * (1 + np.arange(length) % 4)[:, None]

    np.testing.assert_allclose(counts(), np.repeat(1 + np.arange(length) % 4, width).reshape(-1, 8))
    dropped = counts(dropout=jax.random.key(0)) / 2
    np.testing.assert_allclose(dropped, np.round(dropped), atol=1e-5)
    assert dropped.mean() == pytest.approx(2.5 / 2, abs=0.15)
    full = np.round(dropped[3::4])  # the queries that see 4 keys, in ten blocks and eight heads
    assert len({row.tobytes() for row in full}) > 8
    assert set(full.ravel()) == {0, 1, 2, 3, 4}
    assert (dropped != counts(dropout=jax.random.key(1)) / 2).any()


def test_the_bias_of_the_release():
    assert [pivot_bias(1088, pivots) for pivots in (256, 768, 2000)] == [np.log(4), 0, 0]


def test_writing_to_the_cache_puts_pivots_in_their_places():
    old, new = np.zeros((2, 1, 6, 1)), np.arange(1.0, 7).reshape(2, 1, 3, 1)
    pivots = np.array([[0, 2, 4], [3, 4, 9]], np.int32)
    cache = PivotCache(old, old, pivots, old[:, :, :3], old[:, :, :3]).write(2, new, -new)
    expected = [[0, 0, 1, 2, 3, 0], [0, 0, 4, 5, 6, 0]]
    np.testing.assert_array_equal(cache.keys[:, 0, :, 0], expected)
    np.testing.assert_array_equal(cache.values[:, 0, :, 0], -np.array(expected))
    # The written pivots are slots 2 and 4 of the first row, and 3 and 4 of the second.
    np.testing.assert_array_equal(cache.pivot_keys[:, 0, :, 0], [[0, 1, 3], [5, 6, 0]])
    np.testing.assert_array_equal(cache.pivot_values[:, 0, :, 0], [[0, -1, -3], [-5, -6, 0]])
