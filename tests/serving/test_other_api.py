"""Candidates, captions, scores and larger images over HTTP are those of the library."""

import base64
import threading

import jax
import numpy as np
import pytest
from pipeline.small import PROMPTS
from serving.served import Server, pixels_of, png_of

pytest.importorskip("starlette", reason="needs the extra [serve]")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytest.importorskip("python_multipart", reason="needs the extra [serve]")


@pytest.fixture(scope="module")
def server(models):
    from cogview_jax.serving.service import Service
    from cogview_jax.serving.settings import Limits

    service = Service(models, Limits(), rows=4)
    service.start()
    server = Server(service)
    yield server
    server.close()
    service.close()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)


def test_the_best_of_candidates_are_sent_best_first(server, models):
    body = {"prompt": PROMPTS[0], "n": 2, "candidates": 2, "seed": 5}
    status, answer = server.post("/v1/images/generations", body)
    assert status == 200, answer
    own = np.stack(list(map(np.asarray, models.base.generate([PROMPTS[0]], 4, seed=5)[0])))
    scores = models.scorer.score(own, [PROMPTS[0]] * 4)
    best = np.argsort(scores)[:2]
    assert [item["index"] for item in answer["data"]] == best.tolist()
    for item, i in zip(answer["data"], best, strict=True):
        np.testing.assert_array_equal(pixels_of(item), own[i])
        assert item["score"] == pytest.approx(scores[i], abs=1e-6)
    stream = body | {"stream": True}
    status, refused = server.post("/v1/images/generations", stream | {"partial_images": 2})
    assert (status, refused["error"]["param"]) == (400, "partial_images")
    events = server.events(stream)
    assert [event["index"] for _, event in events] == best.tolist()
    outputs = [event["usage"]["output_tokens"] for _, event in events]
    assert sum(outputs) == answer["usage"]["output_tokens"] == 4 * 16
    status, answer = server.post("/v1/images/generations", body | {"n": 3, "candidates": 6})
    assert (status, answer["error"]["param"]) == (400, "n")
    assert answer["error"]["message"] == "n 3 times candidates 6: expected at most 16"


def test_nobody_waits_while_uploads_are_decoded(server, images, monkeypatch):
    from cogview_jax.serving import other_api

    decode, begun, answered = other_api.uploaded_pixels, threading.Event(), threading.Event()

    def slow(*given):
        begun.set()
        assert answered.wait(10)
        return decode(*given)

    monkeypatch.setattr(other_api, "uploaded_pixels", slow)
    found = []
    file = ("image", png_of(images[0]))
    client = threading.Thread(target=lambda: found.append(server.form("/v1/captions", [file])))
    client.start()
    assert begun.wait(60)
    assert server.send("GET", "/health")[0] == 200
    answered.set()
    client.join()
    assert found[0][0] == 200


def test_captions_and_scores(server, models, images):
    files = [("image", png_of(image)) for image in images]
    status, answer = server.form("/v1/captions", files)
    assert status == 200, answer
    assert [item["text"] for item in answer["data"]] == models.scorer.caption(images)
    status, answer = server.form("/v1/scores", files, prompt=PROMPTS[1])
    found = [item["score"] for item in answer["data"]]
    np.testing.assert_allclose(found, models.scorer.score(images, [PROMPTS[1]] * 2), rtol=1e-6)
    assert server.form("/v1/scores", files)[1]["error"]["param"] == "prompt"
    assert "warning" not in answer
    long = server.form("/v1/scores", files, prompt="a red circle and a blue star " * 3)[1]
    assert long["warning"].endswith("but the text region holds 12: it is cut there")
    blank = server.form("/v1/scores", files, prompt=" ")
    assert (blank[0], blank[1]["error"]["param"]) == (400, "prompt")
    assert server.form("/v1/captions", [])[1]["error"]["param"] == "image"
    guided = server.form("/v1/captions", files, guidance=2)
    assert (guided[0], guided[1]["error"]["param"]) == (400, "guidance")


def test_larger_images(server, models, images):
    files = [("image", png_of(image)) for image in images]
    fields = {"prompt": PROMPTS[0], "seed": 3, "image_size": 16}
    status, answer = server.form("/v1/images/upscales", files, **fields)
    assert status == 200, answer
    own = models.upsampler.super_resolve(images, [PROMPTS[0]] * 2, 3)
    for item, image in zip(answer["data"], own, strict=True):
        np.testing.assert_array_equal(pixels_of(item), np.asarray(image))
    assert "warning" not in answer
    long = fields | {"prompt": "a red circle and a blue star " * 3}
    assert "it is cut there" in server.form("/v1/images/upscales", files, **long)[1]["warning"]
    wrong = server.form("/v1/images/upscales", files, prompt=PROMPTS[0], image_size=7)
    assert wrong[1]["error"]["param"] == "image_size"


def test_sampled_images_are_sent_larger_where_their_size_is_asked_for(server, models):
    body = {"prompt": PROMPTS[0], "seed": 3, "size": "32x32"}
    status, answer = server.post("/v1/images/generations", body)
    assert (status, answer["size"]) == (200, body["size"])
    own = np.asarray(models.base.generate([PROMPTS[0]], 1, 3)[0][0])
    own = models.upsampler.super_resolve(own[None], [PROMPTS[0]], 3)[0]
    np.testing.assert_array_equal(pixels_of(answer["data"][0]), np.asarray(own))
    assert base64.b64decode(answer["data"][0]["b64_json"]).startswith(b"\x89PNG")


def test_no_request_compiles_anything(server, images):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    jax.jit(lambda x: x * 123)(1)
    assert compiled
    compiled.clear()
    files = [("image", png_of(image)) for image in images]
    made = "/v1/images/generations"
    for prompt in ("a", *PROMPTS):
        for temperature in (0, 1):
            fields = {"prompt": prompt, "temperature": temperature}
            server.post(made, fields | {"n": 3, "guidance": 1 + temperature, "size": "32x32"})
            server.form("/v1/images/edits", files[:1], **fields)
            server.form("/v1/captions", files, temperature=temperature)
            server.form("/v1/scores", files, prompt=prompt)
            for size in (16, 32):
                server.form("/v1/images/upscales", files[:1], image_size=size, **fields)
    server.events({"prompt": PROMPTS[0], "n": 2, "candidates": 2, "stream": True})
    server.events({"prompt": PROMPTS[0], "stream": True, "partial_images": 3})
    assert compiled == []


def test_a_device_that_fails_beside_the_loop_is_an_error_of_its_request(
    server, models, images, monkeypatch, capfd
):
    def broken(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: secret of the device")

    files = [("image", png_of(images[0]))]
    with monkeypatch.context() as patch:
        patch.setattr(models.scorer, "score", broken)
        status, answer = server.form("/v1/scores", files, prompt=PROMPTS[0])
    assert (status, answer["error"]["code"]) == (503, "device_error")
    assert "secret" not in answer["error"]["message"]
    assert "secret" in capfd.readouterr().err
    assert server.form("/v1/scores", files, prompt=PROMPTS[0])[0] == 200
