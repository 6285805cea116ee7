"""PB-relax attention equals softmax attention, with products that half precision can hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.models.attention import KeyValues, attention_scores, attention_weights

B, N, T, S, H = 2, 3, 5, 7, 16


@pytest.fixture(scope="module")
def inputs():
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((B, N, T, H)).astype(np.float32) * 3
    keys = generator.standard_normal((B, N, S, H)).astype(np.float32)
    mask = generator.random((B, 1, T, S)) < 0.6
    mask[..., 0] = True
    return queries, keys, mask


def weigh(queries, keys, mask, alpha):
    return attention_weights(attention_scores(queries, keys, alpha), mask, alpha)


def plain(queries, keys, mask):
    scores = jnp.einsum("bnth,bnsh->bnts", queries, keys) / H**0.5
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)


def in_half_precision(queries, keys, alpha):
    """Computes equation 4 with every intermediate in float16, as some hardware accumulates."""
    queries = queries / jnp.float16(alpha * H**0.5)
    scores = jnp.einsum("bnth,bnsh->bnts", queries, keys, preferred_element_type=jnp.float16)
    weights = jnp.exp((scores - scores.max(-1, keepdims=True)) * jnp.float16(alpha))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("alpha", [1.0, 8.0, 32.0, 1000.0])
def test_weights_equal_plain_softmax(inputs, alpha):
    queries, keys, mask = inputs
    weights = np.asarray(weigh(queries, keys, mask, alpha))
    for b, n in np.ndindex(B, N):
        expected = reference.attention_weights(
            reference.float64(queries[b, n]), reference.float64(keys[b, n]), mask[b, 0]
        )
        np.testing.assert_allclose(weights[b, n], expected, atol=3e-6)
        assert (weights[b, n][~mask[b, 0]] == 0).all()


@pytest.mark.parametrize("alpha", [1.0, 8.0, 32.0, 1000.0])
def test_gradient_equals_that_of_plain_softmax(inputs, alpha):
    queries, keys, mask = inputs
    upstream = np.random.default_rng(1).standard_normal((B, N, T, S))

    def gradients(weights):
        return jax.grad(lambda q, k: jnp.sum(weights(q, k) * upstream), (0, 1))(queries, keys)

    ours = gradients(lambda q, k: weigh(q, k, mask, alpha))
    expected = gradients(lambda q, k: plain(q, k, mask))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


def test_a_query_that_sees_nothing_gets_uniform_weights_and_no_nan(inputs):
    queries, keys, mask = inputs
    mask = mask.copy()
    mask[0, 0, 2] = False
    weights, gradient = jax.value_and_grad(lambda q: jnp.sum(weigh(q, keys, mask, 32.0)[..., 0]))(
        queries
    )
    assert np.isfinite(weights)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(weigh(queries, keys, mask, 32.0)[0, :, 2], 1 / S)


def test_relaxed_products_fit_half_precision_where_plain_ones_overflow(inputs):
    queries, keys, _ = inputs
    queries, keys = (queries * 50).astype(np.float16), (keys * 200).astype(np.float16)
    keys[:, :, 0] = queries[:, :, 0]
    mask = np.ones((T, S), bool)
    assert np.isnan(in_half_precision(queries, keys, 1.0)).any()
    assert np.isfinite(in_half_precision(queries, keys, 32.0)).all()
    weights = weigh(queries, keys, mask, 32.0)
    for b, n in np.ndindex(B, N):
        expected = reference.attention_weights(
            reference.float64(queries[b, n]), reference.float64(keys[b, n]), mask
        )
        np.testing.assert_allclose(weights[b, n], expected, atol=1e-3)


def test_writing_to_the_cache_changes_only_its_positions():
    old, new = np.zeros((B, N, S, H), np.float32), np.ones((B, N, 2, H), np.float32)
    cache = KeyValues(old, old).write(3, new, 2 * new)
    expected = old.copy()
    expected[:, :, 3:5] = 1
    np.testing.assert_array_equal(cache.keys, expected)
    np.testing.assert_array_equal(cache.values, 2 * expected)


def test_what_is_masked_stays_so_below_the_lowest_scores_of_half_precision():
    """Visible scores near the lowest float16 number are still above the score of a masked key."""
    scores = np.array([[[[-60000, -60016, 100]]]], np.float16)
    mask = np.array([[[[True, True, False]]]])
    weights = np.asarray(attention_weights(scores, mask, 1.0), np.float32)
    np.testing.assert_allclose(weights, [[[[1, 1.125e-7, 0]]]], atol=1e-4)
    assert weights[0, 0, 0, 2] == 0
