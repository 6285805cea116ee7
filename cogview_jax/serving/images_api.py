"""`POST /v1/images/generations` and `/v1/images/edits`."""

import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogview_jax.sampling.decode import OPEN
from cogview_jax.serving.api_error import ApiError
from cogview_jax.serving.fields import Fields, form_fields, json_fields
from cogview_jax.serving.image_request import FIELDS, ImageRequest
from cogview_jax.serving.pictures import uploaded_alpha, uploaded_pixels
from cogview_jax.serving.run import Picture, Run
from cogview_jax.serving.service import Service
from cogview_jax.serving.streams import EventStream, unless_gone


async def generations(request: Request) -> Response:
    """Images of a prompt."""
    service: Service = request.app.state.service
    asked = ImageRequest.read(await json_fields(request, FIELDS), service.offer)
    return await _images(request, asked, "image_generation")


async def edits(request: Request) -> Response:
    """Images of which a part is given: what is kept of an upload, and the rest is sampled."""
    service: Service = request.app.state.service
    fields, files = await form_fields(request, (*FIELDS, "keep_rows"), ("image", "mask"))
    asked = ImageRequest.read(fields, service.offer)
    image = one_file(files, "image")
    mask = one_file(files, "mask") if files["mask"] else None
    size, pixels = service.offer.size, service.limits.pixels

    def decoded() -> tuple[np.ndarray, np.ndarray | None]:
        alpha = uploaded_alpha(mask or image, "mask" if mask else "image", size, pixels)
        return uploaded_pixels(image, "image", size, pixels), alpha

    given, alpha = await service.in_thread(decoded)  # a large one takes a second
    if mask and alpha is None:
        raise ApiError(400, "mask: it leaves nothing to sample", "mask")
    kept = _kept(fields, alpha, service.offer.grid)
    codes = await service.in_thread(lambda: service.models.base.encode(given[None]))
    known = np.where(kept, codes[0], OPEN).astype(np.int32).ravel()
    return await _images(request, asked, "image_edit", known)


def one_file(files: dict[str, list[bytes]], name: str) -> bytes:
    """The only file of a field; ApiError for none or several."""
    if len(files[name]) != 1:
        raise ApiError(400, f"{name}: expected one file, got {len(files[name])}", name)
    return files[name][0]


def _kept(fields: Fields, alpha: np.ndarray | None, grid: int) -> np.ndarray:
    """Which codes are kept, bool [grid, grid]: opaque ones, or so many rows, by default half."""
    if alpha is not None:
        if "keep_rows" in fields.values:
            raise ApiError(400, "keep_rows: the mask says already what is kept", "keep_rows")
        side = len(alpha) // grid
        kept = (alpha.reshape(grid, side, grid, side) == 255).all(axis=(1, 3))
        if kept.all():
            raise ApiError(400, "mask: it leaves nothing to sample", "mask")
        return kept
    rows = fields.integer("keep_rows", grid // 2, 0, grid - 1)
    return np.broadcast_to(np.arange(grid)[:, None] < rows, (grid, grid))


async def _images(
    request: Request, asked: ImageRequest, kind: str, given: np.ndarray | None = None
) -> Response:
    service: Service = request.app.state.service
    client = ":".join(map(str, request.client or ()))
    run = Run(service, asked, client, given)
    await run.begin()
    if asked.stream:
        return EventStream(_events(run, kind), run.cancel)
    try:
        found = await unless_gone(request, _all(run))
    finally:
        run.cancel()
    if asked.candidates == 1:
        found.sort(key=lambda picture: picture.index)
    size = f"{found[0].size}x{found[0].size}"
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": [_item(run, picture) for picture in found],
            "background": "opaque",
            "output_format": "png",
            "size": size,
            "usage": _usage(run, len(asked.indices)),
            **warned(run.warning),
        }
    )


async def _all(run: Run) -> list[Picture]:
    return [picture async for picture in run.pictures()]


async def _events(run: Run, kind: str) -> AsyncIterator[dict[str, Any]]:
    asked = run.request
    async for picture in run.pictures():
        event = _item(run, picture) | {
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": "png",
            "quality": "auto",
            "size": f"{picture.size}x{picture.size}",
        }
        if picture.frame is None:
            event |= {"usage": _usage(run, asked.candidates), **warned(run.warning)}
            yield {"type": f"{kind}.completed", **event}
        else:
            part = {"partial_image_index": picture.frame}
            yield {"type": f"{kind}.partial_image", **event, **part}


def warned(warning: str | None) -> dict[str, str]:
    """The field of an answer that says what became of a prompt that is cut; none of others."""
    return {} if warning is None else {"warning": warning}


def _item(run: Run, picture: Picture) -> dict[str, Any]:
    item = {"b64_json": picture.png, "seed": run.request.seed, "index": picture.index}
    return item if picture.score is None else item | {"score": picture.score}


def _usage(run: Run, images: int) -> dict[str, Any]:
    output = images * run.service.offer.grid**2
    return {
        "input_tokens": run.tokens,
        "input_tokens_details": {"text_tokens": run.tokens, "image_tokens": 0},
        "output_tokens": output,
        "total_tokens": run.tokens + output,
    }
