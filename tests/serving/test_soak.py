"""Many clients at once, some of whom leave or send nonsense: all others get what is theirs."""

import contextlib
import dataclasses
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pipeline.small import PROMPTS
from serving.conftest import of_task
from serving.served import Server, pixels_of, png_of

pytest.importorskip("starlette", reason="needs the extra [serve]")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytest.importorskip("python_multipart", reason="needs the extra [serve]")

MADE, EDITS, CAPTIONS = "/v1/images/generations", "/v1/images/edits", "/v1/captions"
REQUESTS = 60


@pytest.fixture(scope="module")
def served(model, parts):
    from cogview_jax.serving.service import Models, Service
    from cogview_jax.serving.settings import Limits

    service = Service(Models("small", model, of_task(parts, task="caption")), Limits(), rows=4)
    service.start()
    server = Server(service)
    yield server, service
    server.close()
    service.close()


def test_everybody_who_stays_gets_the_right_answer_and_no_row_is_lost(served, model):
    server, service = served
    scorer, generator = service.models.scorer, random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    files = [("image", png_of(pixels))]

    def ask(number):
        """What is wrong with the answer, None for nothing."""
        prompt, kind = PROMPTS[number % 3], number % 10
        settings = {"temperature": number % 4 / 2, "guidance": 1 + number % 3}
        sampling = dataclasses.replace(model.default_sampling, **settings)
        body = {"prompt": prompt, "seed": number, **settings, "n": 1 + number % 2}
        if kind == 0:
            return server.post(MADE, body | {"n": "many"})[0] == 400
        if kind == 1:
            with contextlib.closing(server.connection()) as connection:
                kinds = {"content-type": "application/json"}
                connection.request("POST", MADE, json.dumps(body | {"n": 4}), kinds)
                time.sleep(generator.random() / 20)
            return True
        if kind == 2:
            found = server.form(CAPTIONS, files, seed=number)[1]["data"]
            return [item["text"] for item in found] == scorer.caption(pixels[None], number)
        if kind == 3:
            del body["n"]
            found = server.form(EDITS, files, keep_rows=2, **body)[1]["data"]
            own = model.complete(pixels, 2, prompt, 1, number, sampling=sampling)
        elif kind < 6:
            events = server.events(body | {"stream": True, "partial_images": 2})
            found = [event for name, event in events if name.endswith("completed")]
            found.sort(key=lambda item: item["index"])
            own = model.generate([prompt], body["n"], number, sampling=sampling)[0]
        else:
            found = server.post(MADE, body)[1]["data"]
            own = model.generate([prompt], body["n"], number, sampling=sampling)[0]
        return len(found) == len(own) and all(
            np.array_equal(pixels_of(item), np.asarray(image))
            for item, image in zip(found, own, strict=True)
        )

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(REQUESTS))) == [True] * REQUESTS
    until = time.monotonic() + 300
    while service.engine.waiting or service.engine.rows_used:
        assert time.monotonic() < until
        time.sleep(0.01)
    lines = server.send("GET", "/metrics")[2].decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    counts = {name: float(value) for name, _, value in pairs}
    assert counts[f'cogview_requests_total{{path="{MADE}",status="400"}}'] == REQUESTS / 10
    assert counts[f'cogview_requests_total{{path="{CAPTIONS}",status="200"}}'] == REQUESTS / 10
    assert counts["cogview_rows_used"] == counts["cogview_images_waiting"] == 0
