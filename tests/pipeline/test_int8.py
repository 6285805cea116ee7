"""A model in 8 bits, cache included: every way of sampling gives the same codes."""

import dataclasses

import numpy as np
import pytest
from pipeline.small import LAYOUT, PROMPTS, SAMPLING, prompt_tokens

from cogview_jax.models.quantized_cache import QuantizedSlots
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.sampling.continuous import ContinuousBatch
from cogview_jax.sampling.engine import SamplingRequest, Span
from cogview_jax.sampling.options import SamplingOptions

WINDOWS = dataclasses.replace(SAMPLING, parallel_window=5)
GUIDED = dataclasses.replace(SAMPLING, guidance=3.0)


@pytest.fixture(scope="module")
def small(parts):
    return CogView(**parts, dtype="int8")


@pytest.fixture(scope="module")
def codes(small):
    return small.generate_codes(PROMPTS, 2, 7, sampling=SAMPLING, batch_size=4)


def test_codes_depend_neither_on_the_batch_nor_on_windows(small, codes):
    assert len(np.unique(codes)) > 10
    for prompt, expected in zip(PROMPTS, codes, strict=True):
        alone = small.generate_codes(prompt, 2, 7, sampling=SAMPLING, batch_size=1)
        np.testing.assert_array_equal(alone[0], expected)
    windows = small.generate_codes(PROMPTS, 2, 7, sampling=WINDOWS, batch_size=4)
    np.testing.assert_array_equal(windows, codes)


@pytest.mark.parametrize("window", [0, 5])
def test_requests_that_come_and_go_give_the_same(small, codes, window):
    """Two that are sampled beside one with guidance, which began before them."""
    batch = ContinuousBatch(small.parts.engine, rows=4, step=3, window=window)
    batch.add([SamplingRequest(PROMPTS[2], 1, 0, GUIDED)], [prompt_tokens(small, PROMPTS[2])])
    batch.advance()
    assert all(isinstance(layer.keys, QuantizedSlots) for layer in batch._rows.cache)
    requests = [SamplingRequest(prompt, 7, 1, SAMPLING) for prompt in PROMPTS[:2]]
    numbers = batch.add(requests, [prompt_tokens(small, prompt) for prompt in PROMPTS[:2]])
    found = {number: [] for number in numbers}
    while set(numbers) & set(batch.work):
        for number, tokens in batch.advance().items():
            if number in found:
                found[number] += tokens.tolist()
    for number, expected in zip(numbers, codes[:2, 1], strict=True):
        assert found[number] == expected.ravel().tolist()


def test_a_stream_gives_the_same(small, codes):
    request = SamplingRequest(PROMPTS[1], 7, 0, SAMPLING)
    tokens = small.parts.engine.stream(
        request, prompt_tokens(small, PROMPTS[1]), Span.of_image(small.layout), 6
    )
    np.testing.assert_array_equal(np.concatenate([*tokens]), codes[1, 0].ravel())


def test_completions_and_captions_are_the_same_in_windows(parts, small):
    image = np.random.default_rng(5).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    one, several = (SamplingOptions(3, sampling) for sampling in (SAMPLING, WINDOWS))
    args = (image, 1, PROMPTS[0], 3)
    np.testing.assert_array_equal(
        small.generation.complete(*args, several), small.generation.complete(*args, one)
    )
    part = dataclasses.replace(
        parts["transformer"], layout=dataclasses.replace(LAYOUT, task="caption")
    )
    captioner = CogView(**parts | {"transformer": part}, dtype="int8")
    assert captioner.caption(image[None], seed=3, sampling=WINDOWS) == captioner.caption(
        image[None], seed=3, sampling=SAMPLING
    )


def test_larger_images_are_the_same_in_windows(parts):
    part = dataclasses.replace(
        parts["transformer"], layout=dataclasses.replace(LAYOUT, task="super_resolution")
    )
    model = CogView(**parts | {"transformer": part}, dtype="int8")
    given = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    one, several = (
        model.super_resolve(given, PROMPTS[:2], 5, sampling=sampling, window_candidates=2)
        for sampling in (SAMPLING, WINDOWS)
    )
    np.testing.assert_array_equal(np.stack(one), np.stack(several))
