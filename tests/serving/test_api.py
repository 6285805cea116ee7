"""The HTTP API with plain requests: what is answered, and what is refused."""

import base64
import dataclasses
import io
import json
import re
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image
from pipeline.small import PROMPTS
from serving.served import Server, pixels_of, png_of

pytest.importorskip("starlette", reason="needs the extra [serve]")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytest.importorskip("python_multipart", reason="needs the extra [serve]")

PATH = "/v1/images/generations"
KEY = "a key of enough letters"


@pytest.fixture(scope="module")
def service(model):
    from cogview_jax.serving.service import Models, Service
    from cogview_jax.serving.settings import Limits

    service = Service(Models("small", model), Limits(images=6, pixels=10_000), rows=4)
    service.start()
    yield service
    service.close()


@pytest.fixture(scope="module")
def server(service):
    server = Server(service)
    yield server
    server.close()


@pytest.fixture(scope="module")
def own(model):
    """The images of a seed, as the library has them."""
    return [np.asarray(image) for image in model.generate([PROMPTS[0]], 3, seed=5)[0]]


def test_images_are_those_of_the_library(server, own):
    status, answer = server.post(PATH, {"prompt": PROMPTS[0], "n": 3, "seed": 5})
    assert status == 200
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    for item, pixels in zip(answer["data"], own, strict=True):
        np.testing.assert_array_equal(pixels_of(item), pixels)
    image = Image.open(io.BytesIO(base64.b64decode(answer["data"][1]["b64_json"])))
    facts = json.loads(image.text["cogview"])
    assert (facts["prompt"], facts["seed"], facts["index"]) == (PROMPTS[0], 5, 1)


def test_a_prompt_that_is_cut_is_said_in_the_answer(server):
    long = "a red circle and a blue star " * 3
    for prompt, cut in ((PROMPTS[0], False), (long, True), (long, True)):
        _, answer = server.post(PATH, {"prompt": prompt, "seed": 5})
        assert answer["usage"]["input_tokens"] > 0
        assert ("warning" in answer) is cut
    assert re.fullmatch(
        r"prompt 'a red .*' has \d+ tokens, but the text region holds 12: it is cut there",
        answer["warning"],
    )
    (_, partial), (_, last) = server.events(
        {"prompt": long, "seed": 5, "stream": True, "partial_images": 1}
    )
    assert "warning" not in partial
    assert last["warning"] == answer["warning"]


def test_windows_send_the_same_rows_and_images(model, own):
    from cogview_jax.serving.service import Models, Service
    from cogview_jax.serving.settings import Limits

    # Of two programs the smaller one, of two rows, has windows.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cogview_jax.sampling.continuous.MOST_IN_WINDOWS", 2)
        service = Service(Models("small", model), Limits(), rows=8, window=7)
        service.start()
        server = Server(service)
        try:
            asked = {"prompt": PROMPTS[0], "seed": 5}
            for n in (1, 3):
                fields = asked | {"n": n, "stream": True, "partial_images": 3}
                events = [event for _, event in server.events(fields)]
                first = [event for event in events if event["index"] == 0]
                for event, image in zip(first, model.stream(PROMPTS[0], 5), strict=True):
                    np.testing.assert_array_equal(pixels_of(event), np.asarray(image))
                whole = [event for event in events if event["type"].endswith(".completed")]
                for event in whole:
                    np.testing.assert_array_equal(pixels_of(event), own[event["index"]])
                assert len(whole) == n
        finally:
            server.close()
            service.close()


def test_settings_are_obeyed_and_a_seed_is_found_where_none_is_given(server, model):
    settings = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "guidance": 2.5}
    status, answer = server.post(PATH, {"prompt": PROMPTS[1], **settings})
    assert status == 200
    seed = answer["data"][0]["seed"]
    sampling = dataclasses.replace(model.default_sampling, **settings)
    own = model.generate([PROMPTS[1]], 1, seed, sampling=sampling)[0][0]
    np.testing.assert_array_equal(pixels_of(answer["data"][0]), np.asarray(own))


def test_a_stream_shows_rows_and_ends_with_the_image(server, model, own):
    events = server.events({"prompt": PROMPTS[0], "seed": 5, "stream": True, "partial_images": 3})
    names = [name for name, _ in events]
    assert names == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert names == [event["type"] for _, event in events]
    assert [event.get("partial_image_index") for _, event in events] == [0, 1, 2, None]
    for (_, event), image in zip(events, model.stream(PROMPTS[0], 5), strict=True):
        np.testing.assert_array_equal(pixels_of(event), np.asarray(image))
    np.testing.assert_array_equal(pixels_of(events[-1][1]), own[0])


def test_without_partial_images_a_stream_has_the_images_alone(server, own):
    events = server.events({"prompt": PROMPTS[0], "seed": 5, "n": 3, "stream": True})
    assert [name for name, _ in events] == ["image_generation.completed"] * 3
    for _, event in events:
        np.testing.assert_array_equal(pixels_of(event), own[event["index"]])


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "prompt is missing"),
        ({"prompt": " "}, "prompt", "no text"),
        ({"prompt": 3}, "prompt", "expected a text"),
        ({"prompt": "a", "n": 7}, "n", "from 1 to 6"),
        ({"prompt": "a", "n": True}, "n", "whole number"),
        ({"prompt": "a", "n": 1e300}, "n", "whole number"),
        ({"prompt": "a", "size": "1024x1024"}, "size", "auto, 16x16"),
        ({"prompt": "a", "seed": -1}, "seed", "from 0 to 4294967295"),
        ({"prompt": "a", "temperature": -1}, "temperature", "0 (greedy) or above"),
        ({"prompt": "a", "top_p": 0}, "top_p", "at most 1"),
        ({"prompt": "a", "guidance": "x"}, "guidance", "expected a number"),
        ({"prompt": "a", "temperature": 10**400}, "temperature", "expected a number"),
        ({"prompt": "a", "partial_images": 4}, "partial_images", "from 0 to 3"),
        ({"prompt": "a", "partial_images": 1}, "partial_images", "they need stream true"),
        ({"prompt": "a", "stream": "yes"}, "stream", "true or false"),
        ({"prompt": "a", "response_format": "url"}, "response_format", "b64_json"),
        ({"prompt": "a", "candidates": 2}, "candidates", "--rerank_with"),
        ({"prompt": "a", "user": 5}, "user", "expected a text"),
        ({"prompt": "a", "promt": "b"}, "promt", "did you mean prompt?"),
        ({"prompt": "a", "\ud800": 1}, "?", "unknown field '\\ud800'"),
        ({"prompt": "a", "background": "transparent"}, "background", "auto, opaque"),
    ],
)
def test_a_wrong_field_is_named(server, body, param, words):
    status, answer = server.post(PATH, body)
    assert status == 400
    error = answer["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"]


def test_whole_numbers_may_be_written_as_json_writes_numbers(server, own):
    status, answer = server.post(PATH, {"prompt": PROMPTS[0], "n": 1.0, "seed": 5.0, "user": None})
    assert status == 200
    np.testing.assert_array_equal(pixels_of(answer["data"][0]), own[0])
    assert server.post(PATH, {"prompt": PROMPTS[0], "n": 1.5})[1]["error"]["param"] == "n"


def test_a_field_of_a_form_is_there_once(server):
    head = b'--a\r\ncontent-disposition: form-data; name="seed"\r\n\r\n1\r\n'
    kind = {"content-type": "multipart/form-data; boundary=a"}
    status, _, text = server.send("POST", "/v1/images/edits", 2 * head + b"--a--\r\n", kind)
    assert (status, json.loads(text)["error"]["param"]) == (400, "seed")


def test_another_model_is_not_found(server):
    status, answer = server.post(PATH, {"prompt": "a", "model": "dall-e-3"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert server.send("GET", "/v1/models/other")[0] == 404
    listed = json.loads(server.send("GET", "/v1/models")[2])["data"]
    assert [each["id"] for each in listed] == ["small"]
    assert json.loads(server.send("GET", "/v1/models/small")[2]) == listed[0]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"n": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(server, body):
    status, _, text = server.send("POST", PATH, body, {"content-type": "application/json"})
    assert status == 400
    assert "JSON" in json.loads(text)["error"]["message"]


def test_other_kinds_paths_and_methods_are_refused_in_json(server):
    status, _, text = server.send("POST", PATH, b"{}", {"content-type": "text/plain"})
    assert (status, json.loads(text)["error"]["param"]) == (415, None)
    for method, path, expected in (("GET", PATH, 405), ("GET", "/etc/passwd", 404)):
        status, _, text = server.send(method, path)
        assert (status, "error" in json.loads(text)) == (expected, True)


def test_large_bodies_are_refused_before_they_are_read(server):
    status, answer = server.post(PATH, {"prompt": "a" * (1 << 20)})
    assert (status, answer["error"]["code"]) == (413, "too_large")
    # Without a length it is counted.
    connection = server.connection()
    parts = (b"x" * 65536 for _ in range(32))
    connection.request("POST", PATH, parts, {"content-type": "application/json"})
    assert connection.getresponse().status == 413
    connection.close()


def test_pages_of_other_sites_are_refused(server):
    for origin in ("http://evil.example", "http://[", "null"):
        status, answer = server.post(PATH, {"prompt": "a"}, origin=origin)
        assert (status, answer["error"]["code"]) == (403, "wrong_origin")
    for host in ("evil.example", "[::1"):
        status, _, text = server.send("GET", "/health", headers={"host": host})
        assert (status, json.loads(text)["error"]["code"]) == (403, "wrong_host")
    own = f"http://127.0.0.1:{server.port}"
    assert server.post(PATH, {"prompt": PROMPTS[0]}, origin=own)[0] == 200


def test_a_key_is_asked_for(service):
    server = Server(service, key=KEY)
    try:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}):
            status, answer = server.post(PATH, {"prompt": PROMPTS[0]}, **headers)
            assert (status, answer["error"]["type"]) == (401, "authentication_error")
        right = {"authorization": f"Bearer {KEY}"}
        assert server.post(PATH, {"prompt": PROMPTS[0]}, **right)[0] == 200
        assert server.send("GET", "/health")[0] == 200
        assert server.send("GET", "/metrics")[0] == 401
    finally:
        server.close()


def test_a_server_for_others_needs_a_key():
    from cogview_jax.runtime.errors import InputError
    from cogview_jax.serving.settings import Address

    with pytest.raises(InputError, match="COGVIEW_API_KEY"):
        Address("0.0.0.0")
    assert not Address("0.0.0.0", key=KEY).local
    assert Address("::1").local


def test_too_many_requests_are_told_when_to_come_again(service):
    limits = service.limits
    service.limits = dataclasses.replace(limits, requests_per_minute=2)
    server = Server(service)
    try:
        found = [server.send("POST", PATH, {}) for _ in range(3)]
        assert [status for status, _, _ in found] == [400, 400, 429]
        assert int(found[2][1]["retry-after"]) >= 1
    finally:
        server.close()
        service.limits = limits


def test_a_completion_keeps_what_is_given(server, model):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    fields = {"prompt": PROMPTS[0], "seed": 3}
    status, answer = server.form(
        "/v1/images/edits", [("image", png_of(pixels))], keep_rows=1, n=2, **fields
    )
    assert status == 200, answer
    own = model.complete(pixels, 1, PROMPTS[0], 2, seed=3)
    for item, image in zip(answer["data"], own, strict=True):
        np.testing.assert_array_equal(pixels_of(item), np.asarray(image))
    # A mask that keeps the same row, in the list form of OpenAI's client.
    alpha = np.zeros((16, 16, 4), np.uint8)
    alpha[:4, :, 3] = 255
    files = [("image[]", png_of(pixels)), ("mask", png_of(alpha))]
    status, masked = server.form("/v1/images/edits", files, n=2, **fields)
    assert status == 200, masked
    for item, other in zip(answer["data"], masked["data"], strict=True):
        np.testing.assert_array_equal(pixels_of(item), pixels_of(other))


def test_a_mask_keeps_any_part(server, model):
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    whole = np.full((16, 16, 4), 255, np.uint8)
    whole[4:8, 4:12, 3] = 0
    files = [("image", png_of(pixels)), ("mask", png_of(whole))]
    status, answer = server.form("/v1/images/edits", files, prompt=PROMPTS[0])
    assert status == 200
    # Far from what was sampled, the pixels are those that the codec makes of the image.
    kept = model.decode(model.encode(pixels[None]))[0]
    assert pixels_of(answer["data"][0]).shape == kept.shape
    status, answer = server.form("/v1/images/edits", files, prompt=PROMPTS[0], keep_rows=2)
    assert (status, answer["error"]["param"]) == (400, "keep_rows")
    whole[..., 3] = 255
    for opaque in (whole, whole[..., :3]):
        files = [("image", png_of(pixels)), ("mask", png_of(opaque))]
        status, answer = server.form("/v1/images/edits", files, prompt=PROMPTS[0])
        assert (status, answer["error"]["param"]) == (400, "mask")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "expected one file, got 0"),
        ([("image", b"no image")], "cannot be read"),
        ([("image", png_of(np.zeros((200, 200, 3), np.uint8)))], "at most 10000 are read"),
        ([("picture", b"")], "unknown file"),
    ],
)
def test_uploads_that_cannot_be_used_are_refused(server, files, words):
    status, answer = server.form("/v1/images/edits", files, prompt=PROMPTS[0])
    assert status == 400
    assert words in answer["error"]["message"]


def test_what_a_server_has_no_model_for_is_not_there(server):
    for path in ("/v1/captions", "/v1/scores", "/v1/images/upscales"):
        status, answer = server.form(path, [("image", b"")])
        assert (status, answer["error"]["code"]) == (404, "no_model")


def test_health_metrics_page_and_description(server):
    server.post(PATH, {"prompt": PROMPTS[0]})
    assert json.loads(server.send("GET", "/health")[2]) == {"status": "ok"}
    lines = server.send("GET", "/metrics")[2].decode().splitlines()
    assert f'cogview_requests_total{{path="{PATH}",status="200"}}' in {
        line.rpartition(" ")[0] for line in lines
    }
    assert "cogview_rows 4" in lines
    for line in lines:
        assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0
    described = json.loads(server.send("GET", "/openapi.json")[2])
    sizes = described["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]
    assert sizes["schema"]["properties"]["size"]["enum"] == ["auto", "16x16", None]
    _, headers, text = server.send("GET", "/")
    assert headers["content-type"].startswith("text/html")
    assert b"http://" not in text.replace(b"http://www.w3.org", b"")
    assert b"https://" not in text


@pytest.mark.parametrize("stream", [False, True])
def test_when_a_client_leaves_its_rows_get_free(server, service, monkeypatch, stream):
    gate, step = threading.Event(), service.engine.batch.advance

    def advance():
        if service.engine.batch.work:
            gate.wait(0.5)
        return step()

    monkeypatch.setattr(service.engine.batch, "advance", advance)
    body = json.dumps({"prompt": PROMPTS[0], "n": 6, "stream": stream}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        while service.engine.rows_used < 4:
            time.sleep(0.01)
    until = time.monotonic() + 300
    while service.engine.waiting or service.engine.rows_used:
        assert time.monotonic() < until
        time.sleep(0.01)
    gate.set()
    sampled = "cogview_images_total"
    before = service.metrics._counts[sampled].copy()
    assert server.post(PATH, {"prompt": PROMPTS[0]})[0] == 200
    assert service.metrics._counts[sampled][""] == before[""] + 1


def test_a_device_that_fails_is_an_error_of_its_request(server, service, monkeypatch, capfd):
    step = service.engine.batch.advance

    def advance():
        if service.engine.batch.work:
            raise RuntimeError("INTERNAL: secret of the device")
        return {}

    monkeypatch.setattr(service.engine.batch, "advance", advance)
    status, _, text = server.send("POST", PATH, {"prompt": PROMPTS[0]})
    assert (status, json.loads(text)["error"]["code"]) == (503, "device_error")
    assert b"secret" not in text
    assert "secret" in capfd.readouterr().err
    assert server.send("GET", "/health")[0] == 503
    events = server.events({"prompt": PROMPTS[0], "stream": True})
    assert events == [("error", json.loads(text))]
    monkeypatch.setattr(service.engine.batch, "advance", step)
    assert server.post(PATH, {"prompt": PROMPTS[0]})[0] == 200
    assert server.send("GET", "/health")[0] == 200


def test_a_defect_of_ours_shows_nothing_to_clients(server, service, monkeypatch):
    def broken(codes):
        raise KeyError("secret of the code")

    monkeypatch.setattr(service.models.base, "decode", broken)
    status, _, text = server.send("POST", PATH, {"prompt": PROMPTS[0]})
    assert (status, json.loads(text)["error"]["type"]) == (500, "server_error")
    assert b"secret" not in text
