"""The kernel that reads a cache equals plain attention; it is interpreted without a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpu_lowering
import reference
import tiny
from cogview_jax.models.implementation import Implementation
from cogview_jax.models.kernels.cached_attention import CacheSpan, cached_attention

B, N, S, H = 3, 2, 700, 64
INTERPRETED = jax.default_backend() != "gpu"


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 3e-6), (jnp.bfloat16, 8e-3)])
@pytest.mark.parametrize(
    ("index", "starts"),
    [(0, [0, 0, 0]), (300, [0, 5, 299]), (S - 1, [0, 300, 512]), ((7, 300, 600), [0, 5, 600])],
)
def test_it_is_softmax_attention_to_what_is_filled(index, starts, dtype, error):
    """All slots that should not be seen hold NaN."""
    generator = np.random.default_rng(index)
    last = np.broadcast_to(index, B)
    queries = jnp.asarray(2 * generator.standard_normal((B, N, 1, H)), dtype)
    keys, values = generator.standard_normal((2, B, N, S, H))
    outside = (np.arange(S) > last[:, None]) | (np.arange(S) < np.array(starts)[:, None])
    poison = np.where(outside[:, None, :, None], np.nan, 0)
    keys, values = (jnp.asarray(x + poison, dtype) for x in (keys, values))
    span = CacheSpan(jnp.array(starts), jnp.array(index, jnp.int32), INTERPRETED)
    y = np.asarray(cached_attention(queries, keys, values, span), np.float64)
    for b, n in np.ndindex(B, N):
        filled = slice(starts[b], last[b] + 1)
        q, k, v = (
            reference.float64(x) for x in (queries[b, n], keys[b, n, filled], values[b, n, filled])
        )
        weights = reference.attention_weights(q, k, np.ones((1, len(k)), bool))
        np.testing.assert_allclose(y[b, :, n], weights @ v, atol=error)


def test_a_gpu_is_given_it():
    """The number of slots is no multiple of a block."""
    x = jax.ShapeDtypeStruct((B, N, 1, H), jnp.bfloat16)
    cached = jax.ShapeDtypeStruct((B, N, S, H), jnp.bfloat16)
    span = CacheSpan(jnp.zeros(B, jnp.int32), jnp.int32(0))
    assert gpu_lowering.kernels(cached_attention, x, cached, cached, span) == 1


def test_decoding_with_it_draws_the_same():
    kernel = Implementation("xla", "cache_kernel", jax.default_backend(), INTERPRETED)
    np.testing.assert_array_equal(tiny.draw(12, kernel), tiny.draw(12))
    assert tiny.kernel_calls(kernel) == 2  # one for each layer
