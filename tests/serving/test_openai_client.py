"""The API as the official client of OpenAI's API uses it."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from pipeline.small import PROMPTS
from serving.served import Server, png_of

openai = pytest.importorskip("openai", reason="needs the package openai (pip install openai)")
pytest.importorskip("starlette", reason="needs the extra [serve]")

KEY = "a key of enough letters"


@pytest.fixture(scope="module")
def server(model):
    from cogview_jax.serving.service import Models, Service
    from cogview_jax.serving.settings import Limits

    service = Service(Models("small", model), Limits(waiting=4), rows=4)
    service.start()
    server = Server(service, key=KEY)
    yield server
    server.close()
    service.close()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY) as client:
        yield client


def pixels_of(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json))))


def test_images(client, model):
    answer = client.images.generate(
        model="small",
        prompt=PROMPTS[0],
        n=2,
        size="16x16",
        response_format="b64_json",
        quality="high",
        extra_body={"seed": 5},
    )
    own = model.generate([PROMPTS[0]], 2, seed=5)[0]
    for image, expected in zip(answer.data, own, strict=True):
        np.testing.assert_array_equal(pixels_of(image), np.asarray(expected))
    assert (answer.data[1].seed, answer.data[1].index) == (5, 1)
    assert answer.usage.output_tokens == 32


def test_a_stream(client, model):
    stream = client.images.generate(
        prompt=PROMPTS[0], stream=True, partial_images=2, extra_body={"seed": 5}
    )
    with stream:
        events = list(stream)
    kinds = ["ImageGenPartialImageEvent"] * 2 + ["ImageGenCompletedEvent"]
    assert [type(event).__name__ for event in events] == kinds
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    own = model.generate([PROMPTS[0]], 1, seed=5)[0][0]
    np.testing.assert_array_equal(pixels_of(events[-1]), np.asarray(own))


def test_edits_with_a_mask(client, model):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    alpha = np.zeros((16, 16, 4), np.uint8)
    alpha[:8, :, 3] = 255
    call = {"image": png_of(pixels), "mask": png_of(alpha), "prompt": PROMPTS[0]}
    own = np.asarray(model.complete(pixels, 2, PROMPTS[0], seed=5)[0])
    answer = client.images.edit(**call, n=1, extra_body={"seed": 5})
    np.testing.assert_array_equal(pixels_of(answer.data[0]), own)
    with client.images.edit(**call, stream=True, extra_body={"seed": 5}) as stream:
        events = list(stream)
    assert [type(event).__name__ for event in events] == ["ImageEditCompletedEvent"]
    np.testing.assert_array_equal(pixels_of(events[0]), own)


def test_errors_have_the_types_that_the_client_knows(client, server):
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(prompt=PROMPTS[0], size="1024x1024")
    assert (error.value.param, error.value.status_code) == ("size", 400)
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt=PROMPTS[0], model="gpt-image-1")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").images.generate(prompt=PROMPTS[0])
    with pytest.raises(openai.RateLimitError, match="at most 4 may"):
        client.with_options(max_retries=0).images.generate(prompt=PROMPTS[0], n=9)


def test_an_error_on_the_way_ends_a_stream(client, server, monkeypatch):
    batch = server.service.engine.batch

    def advance():
        raise RuntimeError("INTERNAL: the device is gone")

    monkeypatch.setattr(batch, "advance", advance)
    call = {"prompt": PROMPTS[0], "stream": True}
    failing = pytest.raises(openai.APIError, match="the device has failed")
    with client.images.generate(**call) as stream, failing:
        list(stream)
    monkeypatch.undo()


def test_models(client):
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "cogview_jax"
