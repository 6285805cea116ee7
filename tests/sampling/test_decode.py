"""The jitted decoder against sampling token by token with a pass over the whole prefix for each."""

import dataclasses
import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import prepare_decode_params, unstack_layers
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling import decode as decoding
from cogview_jax.sampling.decode import (
    decode,
    generate,
    in_parts,
    prefill,
    sample_keys,
    segment_lengths,
)
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.layout import left_padded

CONFIG = TransformerConfig(layers=2, width=32, heads=4, dropout=0.1, remat="full")
MODEL = Transformer(CONFIG, vocab_size=60, positions=24)
COUNT, FIRST, LAST = 12, 20, 52
SAMPLING = SamplingConfig(temperature=0.9, top_k=20, top_p=0.95)
PROMPTS = ([55, 3, 4, 56], [55], [55, 1, 2, 3, 4, 5, 6, 56])
NAMES = ("short", "", "long")
INDICES = (0, 1, 0)


@pytest.fixture(scope="module")
def params():
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, tokens)["params"]
    return reference.random_like(unbox(boxed), seed=0)


def sample(params, rows=(0, 1, 2), *, seed=0, count=COUNT, sampling=SAMPLING, longest=9):
    """What `generate` gives for these prompts as one batch."""
    tokens, valid = left_padded([np.array(PROMPTS[i]) for i in rows], longest)
    keys = sample_keys(seed, [NAMES[i] for i in rows], [INDICES[i] for i in rows])
    result = generate(
        prepare_decode_params(unstack_layers(params)),
        tokens,
        valid,
        keys,
        row_settings([sampling] * len(rows)),
        model=MODEL,
        count=count,
        first=FIRST,
        last=LAST,
    )
    return np.asarray(result)


@pytest.fixture(scope="module")
def together(params):
    return sample(params)


def expected(params, i, sampling):
    key = sample_keys(0, NAMES, INDICES)[i]
    return reference.generate(params, CONFIG, PROMPTS[i], key, COUNT, (FIRST, LAST), sampling)


def test_equals_drawing_without_a_cache(params, together):
    assert together.dtype == np.int32
    for i, row in enumerate(together.tolist()):
        assert row == expected(params, i, SAMPLING)


def test_temperature_zero_equals_the_greedy_path(params):
    greedy = SamplingConfig(temperature=0)
    for i, row in enumerate(sample(params, sampling=greedy).tolist()):
        assert row == expected(params, i, greedy)


def test_a_row_does_not_depend_on_its_company_its_place_or_the_padding(params, together):
    np.testing.assert_array_equal(sample(params, (2, 0, 1)), together[[2, 0, 1]])
    np.testing.assert_array_equal(sample(params, (1, 1, 1)), together[[1, 1, 1]])
    np.testing.assert_array_equal(sample(params, (2,), longest=8), together[[2]])


def test_only_allowed_tokens_are_drawn_and_many_of_them(together):
    assert together.min() >= FIRST
    assert together.max() < LAST
    assert len(set(together.flat)) > 10


def test_seeds_draw_differently(params, together):
    assert (sample(params, seed=1) != together).any(axis=1).all()


def test_one_token_is_the_first_of_many(params, together):
    np.testing.assert_array_equal(sample(params, count=1), together[:, :1])


def test_a_key_is_that_of_its_seed_prompt_and_index():
    def data(seed, prompts, indices):
        return jax.random.key_data(sample_keys(seed, prompts, indices)).tolist()

    (one,) = data(3, ["a red circle"], [2])
    others = data(3, ["a red circle", "a red circle", "一个红色的圆形"], [1, 2, 2])
    assert others[1] == one
    different = [*others, *data(4, ["a red circle"] * 2, [2, 1])]
    assert len({tuple(key) for key in different}) == 5


def test_keys_are_folded_with_the_hash_of_the_prompt_and_with_the_index():
    seeds, prompts, indices = [0, 3, 2**31, 2**32 - 1], ["", "a", "一个", "a"], [0, 1, 2, 3]
    keys = jax.random.key_data(sample_keys(seeds, prompts, indices))
    for key, seed, prompt, index in zip(keys, seeds, prompts, indices, strict=True):
        number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4])
        root = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), number)
        assert key.tolist() == jax.random.key_data(jax.random.fold_in(root, index)).tolist()


def test_large_seeds_are_told_apart_or_refused():
    seeds = (0, 1, 2**31, 2**32 - 1)
    keys = [jax.random.key_data(sample_keys(seed, ["a"], [0])).tolist() for seed in seeds]
    assert len({str(key) for key in keys}) == len(seeds)
    for seed in (-1, 2**32, 2**70):
        with pytest.raises(InputError, match=f"seed {seed}: expected 0 to 4294967295"):
            sample_keys(seed, ["a"], [0])


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_compiled_loop_copies_no_cache(params, rows):
    """What a token costs is reading the cache, not moving it."""
    layers = prepare_decode_params(unstack_layers(params))
    tokens, valid = left_padded([np.array(PROMPTS[0])] * rows, 4)
    keys = sample_keys(0, ["a"] * rows, range(rows))
    ids = {"model": MODEL, "first": FIRST}
    sequences = prefill(layers, tokens, valid, keys, count=COUNT, **ids)
    call = {"settings": row_settings([SAMPLING] * rows), "count": COUNT, "last": LAST, **ids}
    program = decode.lower(layers, sequences, **call).compile().as_text()
    loops, entry = program.split("\nENTRY ")
    slots = sequences.cache_mask.shape[1]
    cache = rf"f32\[(?:{rows},)?{CONFIG.heads},{slots},{CONFIG.head_width}\]"
    assert len(re.findall(rf"{cache}\S* fusion\(", loops)) >= 2 * CONFIG.layers
    assert not re.findall(rf"{cache}\S* (?:copy|transpose)\(", loops)
    assert not re.findall(rf"{cache}\S* (?:copy|transpose)\(", entry)


def test_the_cache_of_a_whole_image_is_doubled_twice():
    assert segment_lengths(MODEL, 64, 1024) == [272 - 64, 272, 544]
    assert segment_lengths(MODEL, 208, 880) == [272 - 208, 272, 544]
    # Not for a few tokens, nor where the prompt fills most of it.
    assert segment_lengths(MODEL, 209, 879) == [544 - 209, 544]
    assert segment_lengths(MODEL, 600, 488) == [488]
    assert segment_lengths(MODEL, 9, 502) == [502]
    assert segment_lengths(MODEL, 9, 503) == [256 - 9, 256]
    config = dataclasses.replace(CONFIG, attention="sparse", pivots=4, window=4)
    assert segment_lengths(MODEL.clone(config=config), 64, 1024) == [1024]


@pytest.mark.parametrize("rows", [None, np.array([2, 0, 2, 1])])
def test_tokens_do_not_depend_on_the_cache_s_sizes(params, monkeypatch, rows):
    tokens, valid = left_padded([np.array(prompt) for prompt in PROMPTS], 9)
    count = 15
    names, indices = (NAMES, INDICES) if rows is None else (["a"] * 4, range(4))
    given = np.full((len(names), count), -1)
    given[:, [0, 5, 9]] = [30, 41, 25]
    call = {
        "keys": sample_keys(0, names, indices),
        "given": jnp.asarray(given),
        "rows": None if rows is None else jnp.asarray(rows),
        "model": MODEL,
        "count": count,
        "first": FIRST,
        "last": LAST,
        "settings": row_settings([SAMPLING] * len(names)),
    }
    layers = prepare_decode_params(unstack_layers(params))
    one = np.asarray(generate(layers, tokens, valid, **call))
    monkeypatch.setattr(decoding, "SMALLEST", 4)
    monkeypatch.setattr(decoding, "FEWEST", 1)
    assert segment_lengths(MODEL, 9, count) == [3, 12]
    np.testing.assert_array_equal(generate(layers, tokens, valid, **call), one)
    parts = list(in_parts(layers, tokens, valid, every=5, **call))
    assert [part.shape[1] for part in parts] == [3, 2, 5, 5]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), one)
    assert (one[:, [0, 5, 9]] == [30, 41, 25]).all()
    assert len(np.unique(one)) > 10


def test_tokens_do_not_depend_on_how_many_a_call_draws(params, together):
    tokens, valid = left_padded([np.array(prompt) for prompt in PROMPTS], 9)
    ids = {"model": MODEL, "first": FIRST}
    layers, keys = prepare_decode_params(unstack_layers(params)), sample_keys(0, NAMES, INDICES)
    sequences, parts = prefill(layers, tokens, valid, keys, count=COUNT, **ids), []
    for count in (5, 1, 6):
        settings = row_settings([SAMPLING] * 3)
        sequences, part = decode(layers, sequences, settings, count=count, last=LAST, **ids)
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), together)
