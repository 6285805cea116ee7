"""`POST /v1/captions`, `/v1/scores` and `/v1/images/upscales`: the models beside the loop."""

import secrets
import time
from dataclasses import asdict
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogview_jax.pipeline.cogview import CogView
from cogview_jax.serving.api_error import ApiError
from cogview_jax.serving.fields import Fields, form_fields
from cogview_jax.serving.image_request import check_model, sampling_of
from cogview_jax.serving.images_api import warned
from cogview_jax.serving.pictures import base64_png, uploaded_pixels
from cogview_jax.serving.service import ALONE, Service
from cogview_jax.serving.streams import unless_gone

#: Fields of every upload here; the others choose tokens.
COMMON, CHOOSING = ("model", "user"), ("seed", "temperature", "top_k", "top_p")


async def captions(request: Request) -> Response:
    """A text for each image."""
    service: Service = request.app.state.service
    scorer = _model(service.models.scorer, "captions", "--rerank_with")
    fields, files = await form_fields(request, (*COMMON, *CHOOSING), ("image",))
    check_model(fields, service.offer.name)
    sampling = sampling_of(fields, scorer.captioning.default_sampling)
    seed = fields.integer("seed", 0, 0, 2**32 - 1)
    images = await _uploads(service, files, scorer.codec.config.image_size)
    texts = await _beside(
        request, lambda: scorer.caption(images, seed, sampling=sampling, batch_size=ALONE)
    )
    return JSONResponse({"data": [{"index": i, "text": text} for i, text in enumerate(texts)]})


async def scores(request: Request) -> Response:
    """CapLoss of each image with the prompt: how unlikely the text is for it."""
    service: Service = request.app.state.service
    scorer = _model(service.models.scorer, "scores", "--rerank_with")
    fields, files = await form_fields(request, (*COMMON, "prompt"), ("image",))
    check_model(fields, service.offer.name)
    prompt = _prompt(fields, scorer)
    images = await _uploads(service, files, scorer.codec.config.image_size)
    found = await _beside(
        request, lambda: scorer.score(images, [prompt] * len(images), batch_size=ALONE)
    )
    data = [{"index": i, "score": float(x)} for i, x in enumerate(found)]
    return JSONResponse({"data": data, **warned(scorer.prompts.warning(prompt))})


async def upscales(request: Request) -> Response:
    """Each image, reduced to `image_size`, at twice that."""
    service: Service = request.app.state.service
    upsampler = _model(service.models.upsampler, "upscales", "--upsample_with")
    fields, files = await form_fields(
        request, (*COMMON, *CHOOSING, "prompt", "image_size"), ("image",)
    )
    check_model(fields, service.offer.name)
    sampling = sampling_of(fields, upsampler.super_resolution.default_sampling)
    seed = fields.integer("seed", secrets.randbelow(2**32), 0, 2**32 - 1)
    sizes = [str(size) for size in sorted(service.offer.upscales)]
    size = int(fields.choice("image_size", sizes, sizes[-1]))
    images = await _uploads(service, files, size)
    texts = [_prompt(fields, upsampler)] * len(images) if service.offer.upscales_by_text else None
    larger = await _beside(
        request,
        lambda: upsampler.super_resolve(images, texts, seed, sampling=sampling, batch_size=ALONE),
    )
    facts = {"prompt": texts[0] if texts else None, "seed": seed, "model": service.offer.name}
    facts |= {"upscaled_from": size, **asdict(sampling)}
    data = [
        {"index": i, "b64_json": base64_png(np.asarray(image), facts), "seed": seed}
        for i, image in enumerate(larger)
    ]
    warning = upsampler.prompts.warning(texts[0]) if texts else None
    return JSONResponse({"created": int(time.time()), "data": data, **warned(warning)})


def _model(model: CogView | None, what: str, flag: str) -> CogView:
    if model is None:
        raise ApiError(404, f"this server has no model for {what} ({flag})", code="no_model")
    return model


def _prompt(fields: Fields, model: CogView) -> str:
    """The text of a request, which the model can read."""
    prompt = fields.text("prompt")
    if reason := model.prompts.refused([prompt]).get(prompt):
        raise ApiError(400, reason, "prompt")
    return prompt


async def _uploads(service: Service, files: dict[str, list[bytes]], size: int) -> np.ndarray:
    """The images of a form, decoded in a thread: a large one takes a second."""
    if not files["image"]:
        raise ApiError(400, "image is missing", "image", "missing_required_parameter")

    def pixels() -> np.ndarray:
        most = service.limits.pixels
        return np.stack([uploaded_pixels(data, "image", size, most) for data in files["image"]])

    return await service.in_thread(pixels)


async def _beside(request: Request, work: Any) -> Any:
    service: Service = request.app.state.service
    return await unless_gone(request, service.beside(work))
