"""The cache in 8 bits against NumPy, and whole models that sample with it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.models.attention import KeyValues, attention_scores
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.implementation import choose_implementation
from cogview_jax.models.layer_params import stacked_arrays, unstack_arrays
from cogview_jax.models.quantization import quantized_arrays
from cogview_jax.models.quantized_cache import QuantizedSlots
from cogview_jax.models.transformer import Transformer, cached_forward, empty_cache
from cogview_jax.runtime.precision import policy_of
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.decode import decode, grow, prefill, sample_keys
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig

B, N, T, S, H = 2, 3, 4, 11, 16
GENERATOR = np.random.default_rng(0)


def random(*shape):
    """Slots or queries whose largest values differ by orders of magnitude, and one of zeros."""
    x = GENERATOR.standard_normal(shape) * 10.0 ** GENERATOR.integers(-2, 3, (*shape[:-1], 1))
    x[0, 0, 0] = 0
    return x.astype(np.float32)


def rounded(x):
    """Integers and scales in float64, one row after the other."""
    integers, scales = np.zeros(x.shape), np.zeros((*x.shape[:-1], 1))
    for at in np.ndindex(x.shape[:-1]):
        scales[at] = np.abs(x[at].astype(np.float64)).max() / 127
        if scales[at]:
            integers[at] = np.rint(x[at] / scales[at])
    return integers, scales


def test_every_slot_of_every_head_is_rounded_by_its_own_scale():
    x = random(B, N, S, H)
    found, (integers, scales) = QuantizedSlots.of(x), rounded(x)
    assert (found.integers.dtype, found.scale.dtype) == (jnp.int8, jnp.float32)
    assert found.shape == x.shape
    np.testing.assert_array_equal(found.integers, integers)
    np.testing.assert_allclose(found.scale, scales, rtol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 32.0])
def test_scores_are_products_with_what_the_integers_stand_for(alpha):
    queries, keys = random(B, N, T, H), random(B, N, S, H)
    found = attention_scores(queries, QuantizedSlots.of(keys), alpha)
    known = np.multiply(*rounded(keys))
    scaled = queries.astype(np.float64) / (alpha * H**0.5)
    expected = np.einsum("bnth,bnsh->bnts", scaled, known)
    # Of a query's values 15 bits count, so its error is a share of its largest.
    bound = 2e-5 * np.einsum("bnt,bns->bnts", np.abs(scaled).max(-1), np.abs(known).sum(-1))
    np.testing.assert_array_less(np.abs(found - expected), bound + 1e-6 * np.abs(expected) + 1e-12)


def test_an_average_is_of_what_the_integers_stand_for():
    values, weights = random(B, N, S, H), GENERATOR.dirichlet(np.ones(S) / 4, (B, N, T))
    found = QuantizedSlots.of(values).average(weights.astype(np.float32))
    integers, scales = rounded(values)
    expected = np.einsum("bnts,bnsh->bnth", weights, integers * scales)
    largest = (weights * np.swapaxes(scales, 2, 3)).max(-1)
    bound = 2e-5 * largest[..., None] * np.abs(integers).sum(2, keepdims=True)
    np.testing.assert_array_less(np.abs(found - expected), bound + 1e-6 * np.abs(expected) + 1e-12)


@pytest.mark.parametrize("index", [3, np.array([3, 7])], ids=["one", "each row by itself"])
@pytest.mark.parametrize("rows", [1, B])
def test_writing_rounds_what_is_new_and_changes_nothing_else(index, rows):
    index = jnp.asarray(index[:rows]) if np.ndim(index) else index
    old, new = random(B, N, S, H)[:rows], random(B, N, 2, H)[:rows]
    cache = KeyValues(QuantizedSlots.of(old), QuantizedSlots.of(2 * old)).write(index, new, -new)
    expected = old.copy()
    for row, at in enumerate(np.broadcast_to(index, rows)):
        expected[row, :, at : at + 2] = new[row]
    jax.tree.map(np.testing.assert_array_equal, cache.keys, QuantizedSlots.of(expected))
    written = np.multiply(*cache.values)
    for row, at in enumerate(np.broadcast_to(index, rows)):
        half = np.abs(new[row]).max(-1, keepdims=True) / 253
        assert np.all(np.abs(written[row, :, at : at + 2] + new[row]) <= half)


CONFIG = TransformerConfig(layers=2, width=32, heads=4, dropout=0.0)
MODEL = Transformer(CONFIG, vocab_size=60, positions=24, policy=policy_of("int8"))


@pytest.fixture(scope="module")
def layers():
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, tokens)["params"]
    params = jax.tree.map(jnp.asarray, reference.random_like(unbox(boxed), seed=0))
    return unstack_arrays(quantized_arrays(stacked_arrays(params)))


def test_a_cache_is_in_8_bits_on_a_cpu_where_kernels_are_and_attention_is_dense():
    leaves = jax.tree.leaves(empty_cache(MODEL, 3, 10))
    assert [leaf.dtype for leaf in leaves] == [jnp.int8, jnp.float32] * 4
    size = 2 * CONFIG.layers * 3 * 10 * CONFIG.heads * (CONFIG.head_width + 4)
    assert sum(leaf.nbytes for leaf in leaves) == size
    others = MODEL.clone(policy=policy_of("float32"), implementation=None)
    assert not others.programs.int8_cache
    sparse = TransformerConfig(layers=2, width=32, heads=4, attention="sparse")
    assert not choose_implementation(sparse, MODEL.policy).int8_cache


@pytest.fixture(scope="module")
def passes(layers):
    """Hidden states of two rows of 12 tokens: all at once, one by one, and the float cache's."""
    tokens = np.random.default_rng(1).integers(0, 60, (2, 12)).astype(np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape)

    def hidden(model, steps):
        cache, done, found = empty_cache(model, 2, 14), 0, []
        run = jax.jit(lambda *given: cached_forward(model, layers, *given))
        for step in steps:
            at = slice(done, done + step)
            new, cache = run(
                tokens[:, at], positions[:, at], np.ones((2, 14), bool), cache, jnp.int32(done)
            )
            found.append(new)
            done += step
        return np.concatenate(found, axis=1)

    wide = MODEL.clone(policy=policy_of("float32"), implementation=None)
    return hidden(MODEL, [12]), hidden(MODEL, [5, *[1] * 3, 4]), hidden(wide, [12])


def test_tokens_one_by_one_equal_all_at_once(passes):
    np.testing.assert_allclose(passes[0], passes[1], atol=1e-4)


def test_a_cache_in_8_bits_is_near_one_of_floats(passes):
    error = np.sqrt(np.mean((passes[0] - passes[2]) ** 2))
    assert 1e-5 < error < 0.02 * passes[2].std()


def continued(layers, rows, *, count=8, longer=0):
    """Sequences of `rows` equal prompts, and `decode`'s arguments; `longer` slots are added."""
    tokens = np.full((rows, 3), 55, np.int32)
    keys = sample_keys(0, ["a"] * rows, range(rows))
    ids = {"model": MODEL, "first": 20}
    sequences = prefill(layers, tokens, tokens > 0, keys, count=count - longer, **ids)
    sequences = grow(sequences, longer) if longer else sequences
    return sequences, {
        "settings": row_settings([SamplingConfig(top_k=20)] * rows),
        "count": count,
        "last": 52,
        **ids,
    }


@pytest.mark.parametrize("rows", [1, 3])
def test_the_compiled_loop_copies_no_cache(layers, rows):
    """As that of floats: what a token costs is reading the cache, not moving or widening it."""
    sequences, options = continued(layers, rows)
    program = decode.lower(layers, sequences, **options).compile().as_text()
    slots = sequences.cache_mask.shape[1]
    cache = rf"\[(?:{rows},)?{CONFIG.heads},{slots},{CONFIG.head_width}\]"
    assert len(re.findall(rf"s8{cache}\S* fusion\(", program)) >= 2 * CONFIG.layers
    assert not re.findall(rf"s8{cache}\S* (?:copy|transpose)\(", program)
    assert not re.findall(rf"(?:f32|s32|bf16){cache}", program)


def test_a_cache_that_grows_samples_the_same(layers):
    sampled = []
    for longer in (0, 5):
        sequences, options = continued(layers, 2, longer=longer)
        sampled.append(decode(layers, sequences, **options)[1])
    np.testing.assert_array_equal(*sampled)
    assert len(np.unique(sampled[0])) > 4
