"""Parallel decoding: the tokens that are sampled one after the other, in fewer passes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from pipeline.small import LAYOUT, MODEL, OFFICIAL, PROMPTS, SAMPLING

from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.decode import prefill, sample_keys
from cogview_jax.sampling.engine import SamplingRequest, Span
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions
from cogview_jax.sampling.parallel import Windows, decode_parallel
from cogview_jax.tokenizers.layout import left_padded


def windowed(window, config=SAMPLING, **changes):
    return dataclasses.replace(config, parallel_window=window, **changes)


@pytest.mark.parametrize("window", [5, 40])
@pytest.mark.parametrize(
    "changes",
    [{}, {"guidance": 3.0}, {"temperature": 0.0}, {"top_p": 0.7, "temperature": 0.6}],
    ids=["sampled", "guided", "greedy", "filtered"],
)
def test_images_are_those_that_are_sampled_one_code_after_the_other(model, window, changes):
    one = dataclasses.replace(SAMPLING, **changes)
    expected = model.generate_codes(PROMPTS, 2, 7, sampling=one, batch_size=4)
    found = model.generate_codes(PROMPTS, 2, 7, sampling=windowed(window, one), batch_size=4)
    np.testing.assert_array_equal(found, expected)


def test_a_window_has_no_more_places_than_there_are_codes(model):
    model.generate_codes(PROMPTS, 1, 7, sampling=windowed(LAYOUT.grid**2))
    programs = decode_parallel._cache_size()
    model.generate_codes(PROMPTS, 1, 7, sampling=windowed(1024))
    assert decode_parallel._cache_size() == programs


def test_rows_of_other_settings_may_share_the_passes(model):
    rows = model.generation.prompt_rows(PROMPTS)
    configs = [windowed(4), windowed(0, guidance=2.0), windowed(3, temperature=0.2)]
    span, engine = Span.of_image(model.layout), model.parts.engine
    requests = [
        SamplingRequest(prompt, 7, 0, config)
        for prompt, config in zip(PROMPTS, configs, strict=True)
    ]
    together = np.concatenate([*engine.sample(requests, [rows[p] for p in PROMPTS], span, 4)])
    for request, tokens in zip(requests, together, strict=True):
        config = dataclasses.replace(request.sampling, parallel_window=0)
        alone = model.generate_codes(request.prompt, 1, 7, sampling=config).ravel()
        np.testing.assert_array_equal(tokens, alone)


def test_larger_images_are_the_same_too(parts):
    layout = dataclasses.replace(LAYOUT, task="super_resolution")
    part = dataclasses.replace(parts["transformer"], layout=layout)
    model = CogView(**parts | {"transformer": part})
    small = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    one, several = (
        model.super_resolve(small, PROMPTS, 5, sampling=windowed(window), window_candidates=2)
        for window in (0, 6)
    )
    np.testing.assert_array_equal(np.stack(one), np.stack(several))


def test_a_completed_image_and_captions_are_the_same_too(parts, model):
    image = np.random.default_rng(5).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    one, several = (SamplingOptions(3, windowed(window)) for window in (0, 6))
    args = (image, 1, PROMPTS[0], 3)
    np.testing.assert_array_equal(
        model.generation.complete(*args, several), model.generation.complete(*args, one)
    )
    part = dataclasses.replace(
        parts["transformer"], layout=dataclasses.replace(LAYOUT, task="caption")
    )
    captioner = CogView(**parts | {"transformer": part})
    images = np.stack([image, image[::-1], image[:, ::-1]])
    for config in (SAMPLING, SamplingConfig(temperature=0.0)):
        texts = captioner.caption(images, 2, sampling=config)
        assert captioner.caption(images, 2, sampling=windowed(5, config)) == texts


@pytest.mark.parametrize("window", [3, 6, 16])
def test_a_stream_shows_the_same_rows(model, window):
    """After each row of four codes, though several rows may be right after a single pass."""
    for config in (SAMPLING, dataclasses.replace(SAMPLING, guidance=3.0)):
        one = [*model.stream(PROMPTS[1], 7, sampling=config)]
        several = [*model.stream(PROMPTS[1], 7, sampling=windowed(window, config))]
        np.testing.assert_array_equal(np.stack(several), np.stack(one))
        assert len(several) == LAYOUT.grid


def test_the_passes_of_a_stream_are_those_of_a_whole_image(model):
    engine, span = model.parts.engine, Span.of_image(model.layout)
    requests = [SamplingRequest(prompt, 7, 0, SAMPLING) for prompt in PROMPTS[:2]]
    rows = model.generation.prompt_rows(PROMPTS)
    prompts = [rows[request.prompt] for request in requests]
    _, expected = engine.in_windows(requests, prompts, span, 5)
    *_, last = engine._windows(requests, prompts, span, 5, every=4)
    np.testing.assert_array_equal(last.passes, expected)


def sampled(model, window, given=None, config=SAMPLING):
    """Codes and passes of one batch."""
    engine, span = model.parts.engine, Span.of_image(model.layout)
    rows = model.generation.prompt_rows(PROMPTS)
    tokens, valid = left_padded([rows[prompt] for prompt in PROMPTS], span.prompt)
    keys = sample_keys(7, PROMPTS, [0] * len(PROMPTS))
    sequences = prefill(
        engine.params,
        tokens,
        valid,
        keys,
        model=engine.model,
        count=span.count + window - 1,
        first=span.first,
    )
    whole = decode_parallel(
        engine.params,
        Windows.of(sequences, span.count, window),
        row_settings([config] * len(PROMPTS)),
        given,
        model=engine.model,
        count=span.count,
        first=span.first,
        last=span.last,
        window=window,
        above=span.above,
    )
    return np.asarray(whole.line)[:, 1 : 1 + span.count], np.asarray(whole.passes)


def test_tokens_that_are_known_need_no_pass_of_their_own(model, codes):
    """With all codes known, each pass keeps a whole window; with all but the last, too."""
    every = jnp.asarray(codes[:, 0].reshape(3, 16))
    for given in (every, every.at[:, -1].set(-1)):
        found, passes = sampled(model, 4, given)
        np.testing.assert_array_equal(found, every)
        np.testing.assert_array_equal(passes, [4, 4, 4])
    _, passes = sampled(model, 1)
    np.testing.assert_array_equal(passes, [16, 16, 16])


def test_a_row_waits_for_no_other(model, codes):
    """The first row is known, the others are not: all are right, whatever each keeps."""
    given = jnp.full((3, 16), -1, jnp.int32).at[0].set(5)
    found, passes = sampled(model, 4, given)
    assert (found[0] == 5).all()
    np.testing.assert_array_equal(found[1:], codes[1:, 0].reshape(2, 16))
    assert passes[0] == 4
    assert (passes[1:] > 4).all()
    assert (passes <= 16).all()


def test_models_that_look_ahead_or_sample_pivots_are_refused(parts):
    for config, why in (
        (OFFICIAL, "in a model of compat 'official' what comes later changes what came before"),
        (
            dataclasses.replace(MODEL, attention="sparse", window=4, window_blocks=2, pivots=4),
            "a model of sparse attention samples one token after the other",
        ),
    ):
        part = dataclasses.replace(parts["transformer"], config=config)
        with pytest.raises(InputError, match=f"parallel_window 8: {why}"):
            CogView(**parts | {"transformer": part}).generate_codes(PROMPTS, sampling=windowed(8))
        layout = dataclasses.replace(LAYOUT, task="super_resolution")
        upsampler = CogView(**parts | {"transformer": dataclasses.replace(part, layout=layout)})
        with pytest.raises(InputError, match=f"parallel_window 8: {why}"):
            upsampler.super_resolve(np.zeros((1, 8, 8, 3), np.uint8), [""], sampling=windowed(8))
    with pytest.raises(InputError, match=r"parallel_window = -1: expected 0 \(one token after"):
        SamplingConfig(parallel_window=-1)
