"""The loop that samples for all: what each client gets, in which order, and after failures."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from pipeline.small import PROMPTS, SAMPLING

from cogview_jax.sampling.continuous import ContinuousBatch
from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.serving.engine_loop import EngineLoop
from cogview_jax.serving.jobs import Closing, DeviceFailed, ImageJob, QueueFull, TimedOut

GUIDED = dataclasses.replace(SAMPLING, guidance=3.0)


class Waiting:
    """A client: the codes it was given, or the error."""

    def __init__(self, model, request, client="a", **keywords):
        self.parts, self.error, self.over = [], None, threading.Event()
        prompt = model.generation.prompt_rows([request.prompt])[request.prompt]
        self.job = ImageJob(request, prompt, client, self.codes, self.failed, **keywords)

    def codes(self, codes):
        self.parts.append(codes)
        if len(codes) == 4:
            self.over.set()

    def failed(self, error):
        self.error = error
        self.over.set()

    def result(self):
        assert self.over.wait(300)
        return self.error or self.parts[-1]


@pytest.fixture
def loop(model, monkeypatch):
    batch = ContinuousBatch(model.parts.engine, rows=4, step=2)
    loop = EngineLoop(batch, columns=4, most_waiting=8)
    loop.start()
    yield loop
    loop.close(60)
    assert not loop._thread.is_alive()


@pytest.fixture
def held(loop, monkeypatch):
    """The loop waits before each step until it is allowed to go on."""
    gate, step = threading.Semaphore(0), loop.batch.advance

    def advance():
        if loop.batch.work:
            assert gate.acquire(timeout=300)
        return step()

    monkeypatch.setattr(loop.batch, "advance", advance)
    return gate


def alone(model, request):
    return next(model.generation.sample_codes([request]))[0]


def test_everybody_gets_the_image_of_the_request_and_its_rows_on_the_way(loop, model):
    requests = [
        SamplingRequest(PROMPTS[i % 3], i, i % 2, (SAMPLING, GUIDED)[i % 2]) for i in range(6)
    ]
    clients = [Waiting(model, request, str(i % 2)) for i, request in enumerate(requests)]
    loop.submit([client.job for client in clients[:4]])
    loop.submit([client.job for client in clients[4:]])
    for client, request in zip(clients, requests, strict=True):
        codes = client.result()
        np.testing.assert_array_equal(codes, alone(model, request))
        assert [len(part) for part in client.parts] == [1, 2, 3, 4]
        for part in client.parts:
            np.testing.assert_array_equal(part, codes[: len(part)])
    assert (loop.rows_used, loop.waiting) == (0, 0)


def test_no_more_wait_than_may(loop, held, model):
    request = SamplingRequest(PROMPTS[0], sampling=SAMPLING)
    clients = [Waiting(model, request) for _ in range(4)]
    loop.submit([client.job for client in clients])
    while loop.rows_used < 4:
        time.sleep(0.01)
    more = [Waiting(model, request) for _ in range(9)]
    with pytest.raises(QueueFull, match="at most 8 may"):
        loop.submit([client.job for client in more])
    assert loop.waiting == 0
    loop.submit([client.job for client in more[:8]])
    held.release(100)
    for client in [*clients, *more[:8]]:
        assert client.result().shape == (4, 4)


def test_rows_of_a_client_who_leaves_are_free(loop, held, model):
    request = SamplingRequest(PROMPTS[0], sampling=GUIDED)
    leaving = [Waiting(model, request, "a") for _ in range(3)]
    staying = Waiting(model, request, "b")
    loop.submit([client.job for client in [*leaving, staying]])
    while loop.rows_used < 4:
        time.sleep(0.01)
    loop.cancel([client.job for client in leaving])
    held.release(100)
    np.testing.assert_array_equal(staying.result(), alone(model, request))
    assert not any(len(part) == 4 for client in leaving for part in client.parts)


def test_a_request_ends_at_its_deadline_waiting_or_not(loop, held, model):
    request = SamplingRequest(PROMPTS[0], sampling=GUIDED)
    soon = time.monotonic() + 0.2
    clients = [Waiting(model, request, deadline=soon) for _ in range(3)]
    loop.submit([client.job for client in clients])
    time.sleep(0.3)
    held.release(100)
    assert [type(client.result()) for client in clients] == [TimedOut] * 3
    last = Waiting(model, request)
    loop.submit([last.job])
    assert last.result().shape == (4, 4)


def test_what_the_device_fails_at_once_is_done_again(loop, held, model, monkeypatch, capsys):
    request = SamplingRequest(PROMPTS[1], 5, 0, GUIDED)
    client, step, calls = Waiting(model, request), loop.batch.advance, []

    def advance():
        found = step()
        calls.extend(found)
        if len(calls) == 2:
            raise RuntimeError("INTERNAL: the device is gone")
        return found

    monkeypatch.setattr(loop.batch, "advance", advance)
    held.release(100)
    loop.submit([client.job])
    np.testing.assert_array_equal(client.result(), alone(model, request))
    assert loop.healthy
    assert "the device is gone" in capsys.readouterr().err


def test_who_leaves_as_the_device_fails_is_not_sampled_anew(loop, model, monkeypatch):
    request = SamplingRequest(PROMPTS[1], 5, 0, GUIDED)
    leaving, staying = Waiting(model, request, "a"), Waiting(model, request, "b")
    begun, step, add = [], loop.batch.advance, loop.batch.add

    def advance():
        if loop.batch.work and len(begun) == 1:
            loop.cancel([leaving.job])
            raise RuntimeError("INTERNAL: the device is gone")
        return step()

    monkeypatch.setattr(loop.batch, "advance", advance)
    monkeypatch.setattr(loop.batch, "add", lambda *given: begun.append(given[0]) or add(*given))
    loop.submit([leaving.job, staying.job])
    np.testing.assert_array_equal(staying.result(), alone(model, request))
    assert [len(requests) for requests in begun] == [2, 1]
    assert not leaving.parts
    assert leaving.error is None


def test_what_it_fails_at_again_is_an_error_of_that_request(loop, model, monkeypatch):
    request = SamplingRequest(PROMPTS[1], 5, 0, GUIDED)
    step = loop.batch.advance

    def advance():
        if loop.batch.work:
            raise RuntimeError("INTERNAL: the device is gone")
        return {}

    monkeypatch.setattr(loop.batch, "advance", advance)
    client = Waiting(model, request)
    loop.submit([client.job])
    assert isinstance(client.result(), DeviceFailed)
    monkeypatch.setattr(loop.batch, "advance", step)
    client = Waiting(model, request)
    loop.submit([client.job])
    np.testing.assert_array_equal(client.result(), alone(model, request))


def test_it_finishes_what_it_has_and_takes_no_more(loop, held, model):
    request = SamplingRequest(PROMPTS[0], sampling=SAMPLING)
    client = Waiting(model, request)
    loop.submit([client.job])
    threading.Timer(0.2, held.release, [100]).start()
    loop.close(60)
    assert client.result().shape == (4, 4)
    with pytest.raises(Closing):
        loop.submit([Waiting(model, request).job])
