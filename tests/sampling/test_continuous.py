"""Requests that come and go beside each other, against the engine that samples them in batches."""

import dataclasses

import numpy as np
import pytest
from pipeline.conftest import model, parts  # noqa: F401  (fixtures)
from pipeline.small import PROMPTS, SAMPLING

from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling import continuous, decode
from cogview_jax.sampling.continuous import ContinuousBatch
from cogview_jax.sampling.engine import SamplingRequest, Span

GUIDED = dataclasses.replace(SAMPLING, guidance=3.0)
REQUESTS = (
    SamplingRequest(PROMPTS[0], 1, 0, SAMPLING),
    SamplingRequest(PROMPTS[1], 2, 1, GUIDED),
    SamplingRequest(PROMPTS[0], 1, 0, dataclasses.replace(SAMPLING, temperature=0.0)),
    SamplingRequest(PROMPTS[2], 3, 2, dataclasses.replace(GUIDED, top_p=0.8)),
    SamplingRequest(PROMPTS[2], 4, 0, dataclasses.replace(SAMPLING, top_k=0)),
)


@pytest.fixture(scope="module")
def batch(model):  # noqa: F811
    return ContinuousBatch(model.parts.engine, rows=4, step=2)


@pytest.fixture(scope="module")
def alone(model):  # noqa: F811
    """What each request gives with nothing beside it."""
    return [next(model.generation.sample_codes([request]))[0] for request in REQUESTS]


@pytest.fixture(scope="module", params=[3, 16])
def windowed(model, request):  # noqa: F811
    """One that samples in windows while at most two rows are at work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuous, "MOST_IN_WINDOWS", 2)
        patch.setattr(continuous, "STEP", 2)
        yield ContinuousBatch(model.parts.engine, rows=4, step=3, window=request.param)


def prompt_of(model, request):  # noqa: F811
    return model.generation.prompt_rows([request.prompt])[request.prompt]


def begin(batch, model, request, given=None):  # noqa: F811
    return batch.add([request], [prompt_of(model, request)], [given])[0]


def test_requests_that_come_as_rows_get_free_give_what_they_give_alone(batch, model, alone):  # noqa: F811
    assert one_after_the_other(batch, model, REQUESTS, alone) > 2


def one_after_the_other(batch, model, requests, alone):  # noqa: F811
    """Checks requests of which one begins a step; returns how many there were at a time."""
    waiting, numbers, found = list(requests), [], {}
    together = 0
    while waiting or batch.work:
        # At most one new request a step, so that all stand at different places.
        if waiting and batch.fits(waiting[0]):
            numbers.append(begin(batch, model, waiting.pop(0)))
        together = max(together, len(batch.work))
        for number, tokens in batch.advance().items():
            found.setdefault(number, []).extend(tokens.tolist())
    for number, codes in zip(numbers, alone, strict=True):
        assert found[number] == codes.ravel().tolist()
    return together


def test_windows_give_the_same_beside_steps_of_one_token(windowed, model, alone):  # noqa: F811
    """A single row begins in windows; others join at the next pass, and then none has windows."""
    sizes, sampled = [], windowed._sampled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            windowed,
            "_sampled",
            lambda size, count, places: sizes.append(places) or sampled(size, count, places),
        )
        one_after_the_other(windowed, model, (*REQUESTS, REQUESTS[0]), (*alone, alone[0]))
    assert {1, windowed.window} == set(sizes)


def test_a_request_takes_as_many_passes_as_in_a_batch_of_windows(windowed, model, alone):  # noqa: F811
    engine, span = model.parts.engine, Span.of_image(model.layout)
    for i in (0, 1):
        _, expected = engine.in_windows(
            REQUESTS[i : i + 1], [prompt_of(model, REQUESTS[i])], span, windowed.window
        )
        number, found, passes = begin(windowed, model, REQUESTS[i]), [], 0
        while windowed.work:
            found += windowed.advance()[number].tolist()
            passes += 1
        assert found == alone[i].ravel().tolist()
        assert passes == expected[0] < 16


def test_given_codes_are_kept_in_windows_too(windowed, model, alone):  # noqa: F811
    """Those in the middle as well; behind them the image is another."""
    expected = alone[1].ravel()
    for known in (np.arange(16) < 5, np.arange(16) % 5 == 2):
        given = np.where(known, (expected + 7 * (np.arange(16) > 5)) % 30, -1).astype(np.int32)
        plain = ContinuousBatch(model.parts.engine, rows=2, step=4)
        sampled = []
        for each in (plain, windowed):
            number, found = begin(each, model, REQUESTS[1], given), []
            while each.work:
                found += each.advance()[number].tolist()
            sampled.append(found)
        assert sampled[0] == sampled[1]
        np.testing.assert_array_equal(np.array(sampled[0])[known], given[known])


def test_a_model_that_cannot_have_windows_is_refused(parts):  # noqa: F811
    config = dataclasses.replace(
        parts["transformer"].config, attention="sparse", window=3, window_blocks=2, pivots=4
    )
    sparse = CogView(
        **parts | {"transformer": dataclasses.replace(parts["transformer"], config=config)}
    )
    with pytest.raises(InputError, match="parallel_window 4: a model of sparse attention"):
        ContinuousBatch(sparse.parts.engine, rows=2, step=4, window=4)


def test_guidance_takes_two_rows(batch, model):  # noqa: F811
    numbers = [begin(batch, model, REQUESTS[i]) for i in (1, 0)]
    assert batch.used == 3
    assert batch.fits(REQUESTS[0])
    assert not batch.fits(REQUESTS[1])
    for number in numbers:
        batch.remove(number)
    assert batch.used == 0


def test_one_that_is_given_up_changes_no_other(batch, model, alone):  # noqa: F811
    first, second = begin(batch, model, REQUESTS[1]), begin(batch, model, REQUESTS[0])
    found = batch.advance()[second].tolist()
    batch.remove(first)
    batch.remove(first)
    begin(batch, model, REQUESTS[4])
    while second in batch.work:
        found += batch.advance()[second].tolist()
    batch.clear()
    assert found == alone[0].ravel().tolist()


def test_given_codes_are_a_completion(batch, model):  # noqa: F811
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    request = dataclasses.replace(REQUESTS[1], index=0)
    expected = next(model.generation.complete_codes(pixels, 1, [request], [0])).ravel()
    given = np.where(np.arange(16) < 4, expected, -1).astype(np.int32)
    number, found = begin(batch, model, request, given), []
    while batch.work:
        found += batch.advance()[number].tolist()
    assert found == expected.tolist()


def test_after_an_error_it_begins_anew(batch, model, alone):  # noqa: F811
    begin(batch, model, REQUESTS[1])
    batch._rows.keys.delete()
    with pytest.raises((RuntimeError, ValueError)):
        batch.advance()
    batch.clear()
    number, found = begin(batch, model, REQUESTS[0]), []
    while batch.work:
        found += batch.advance()[number].tolist()
    assert found == alone[0].ravel().tolist()


@pytest.mark.parametrize("window", [0, 3])
def test_every_program_is_compiled_before_the_first_request(model, window, monkeypatch):  # noqa: F811
    monkeypatch.setattr(continuous, "MOST_IN_WINDOWS", 2)
    batch = ContinuousBatch(model.parts.engine, rows=8, step=2, window=window)
    batch.compile()
    programs = (
        continuous.advance,
        continuous.window_pass,
        continuous.admit,
        continuous.prefill,
        decode._keys_of_rows,
    )
    compiled = [program._cache_size() for program in programs]
    for requests in (REQUESTS[:2], REQUESTS[2:3], REQUESTS[3:]):
        batch.add(requests, [prompt_of(model, request) for request in requests])
        batch.advance()
        if batch.used > 2:
            batch.clear()
    assert [program._cache_size() for program in programs] == compiled


def test_rows_of_sparse_attention_have_pivots_of_their_own(parts):  # noqa: F811
    config = dataclasses.replace(
        parts["transformer"].config, attention="sparse", window=3, window_blocks=2, pivots=4
    )
    transformer = dataclasses.replace(parts["transformer"], config=config)
    sparse = CogView(**parts | {"transformer": transformer})
    batch, found = ContinuousBatch(sparse.parts.engine, rows=4, step=8), {}
    requests = REQUESTS[1:3]
    numbers = batch.add(requests, [prompt_of(sparse, request) for request in requests])
    while batch.work:
        for number, tokens in batch.advance().items():
            found.setdefault(number, []).extend(tokens.tolist())
    for number, request in zip(numbers, requests, strict=True):
        alone = next(sparse.generation.sample_codes([request]))[0]
        assert found[number] == alone.ravel().tolist()
