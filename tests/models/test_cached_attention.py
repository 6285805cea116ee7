"""The kernel that reads a cache, against attention written out; without a GPU, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.models.cached_attention import Filled, cached_attention
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer, unstack_layers
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.decode import generate, sample_keys
from cogview_jax.sampling.filters import SamplingConfig
from cogview_jax.tokenizers.layout import left_padded

B, N, S, H = 3, 2, 700, 64
INTERPRETED = jax.default_backend() != "gpu"


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 3e-6), (jnp.bfloat16, 8e-3)])
@pytest.mark.parametrize(
    ("index", "starts"), [(0, [0, 0, 0]), (300, [0, 5, 299]), (S - 1, [0, 300, 512])]
)
def test_it_is_softmax_attention_to_what_is_filled(index, starts, dtype, error):
    """What lies outside is poison."""
    generator = np.random.default_rng(index)
    queries = jnp.asarray(2 * generator.standard_normal((B, N, 1, H)), dtype)
    keys, values = generator.standard_normal((2, B, N, S, H))
    outside = (np.arange(S) > index) | (np.arange(S) < np.array(starts)[:, None])
    poison = np.where(outside[:, None, :, None], np.nan, 0)
    keys, values = (jnp.asarray(x + poison, dtype) for x in (keys, values))
    seen = Filled(jnp.array(starts), jnp.int32(index))
    y = np.asarray(cached_attention(queries, keys, values, seen, INTERPRETED), np.float64)
    for b, n in np.ndindex(B, N):
        filled = slice(starts[b], index + 1)
        q, k, v = (
            reference.float64(x) for x in (queries[b, n], keys[b, n, filled], values[b, n, filled])
        )
        weights = reference.attention_weights(q, k, np.ones((1, len(k)), bool))
        np.testing.assert_allclose(y[b, :, n], weights @ v, atol=error)


def test_decoding_with_it_draws_the_same(monkeypatch):
    """Prompts of several lengths, so that rows begin at several slots."""
    config = TransformerConfig(layers=2, width=32, heads=2, dropout=0.0)
    model = Transformer(config, vocabulary=60, positions=24)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *[jnp.zeros((1, 1), jnp.int32)] * 2)
    params = unstack_layers(reference.random_like(unbox(shapes["params"]), 0))
    tokens, valid = left_padded([np.array(p) for p in ([55, 3, 4, 56], [55], [55, 1, 2])], 9)
    keys = sample_keys(0, ["a", "b", "c"], [0, 0, 0])

    def drawn(count):
        sampling = SamplingConfig(temperature=0.9, top_k=20)
        ids = {"first": 20, "last": 52, "config": sampling}
        return np.asarray(generate(params, tokens, valid, keys, model=model, count=count, **ids))

    expected, calls = drawn(12), []

    def interpreted(*arguments):
        calls.append(arguments)
        return cached_attention(*arguments, interpret=True)

    monkeypatch.setattr("cogview_jax.models.transformer.has_cache_kernel", lambda *_: True)
    monkeypatch.setattr("cogview_jax.models.attention.cached_attention", interpreted)
    # Another count: what was compiled before is not used again.
    np.testing.assert_array_equal(drawn(11), expected[:, :11])
    assert len(calls) >= config.layers
