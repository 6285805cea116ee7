"""The paths of the server."""

import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cogview_jax.serving.api_error import DRAINING, ApiError, http_error, respond
from cogview_jax.serving.guard import Guard
from cogview_jax.serving.images_api import edits, generations
from cogview_jax.serving.jobs import Refused
from cogview_jax.serving.openapi import described
from cogview_jax.serving.other_api import captions, scores, upscales
from cogview_jax.serving.page_files import PAGE, page_routes
from cogview_jax.serving.service import Service
from cogview_jax.serving.settings import Address
from cogview_jax.serving.streams import ClientGone

#: The paths that are counted by name.
PATHS = {
    *PAGE,
    *("/health", "/metrics", "/openapi.json", "/v1/models", "/v1/captions", "/v1/scores"),
    *("/v1/images/generations", "/v1/images/edits", "/v1/images/upscales"),
}


def make_app(service: Service, address: Address) -> Starlette:
    """The application, which answers for a service."""
    app = Starlette(
        routes=[
            *page_routes(PAGE),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/images/generations", generations, methods=["POST"]),
            Route("/v1/images/edits", edits, methods=["POST"]),
            Route("/v1/images/upscales", upscales, methods=["POST"]),
            Route("/v1/captions", captions, methods=["POST"]),
            Route("/v1/scores", scores, methods=["POST"]),
        ],
        middleware=[
            Middleware(Counted, service=service),
            Middleware(
                Guard,
                address=address,
                limits=service.limits,
                closing=lambda: service.engine.closing,
            ),
        ],
        exception_handlers={
            ApiError: respond,
            Refused: respond,
            HTTPException: http_error,
            ClientGone: _nobody_reads,
            Exception: respond,
        },
    )
    app.state.service = service
    return app


class Counted:
    """Counts the requests of each path, by status and by time."""

    def __init__(self, app: ASGIApp, service: Service):
        """Wraps `app`."""
        self.app, self.metrics = app, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.monotonic()

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            # What others ask for has no place among the labels.
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.count(
                "cogview_requests_total",
                "Requests that were answered.",
                f'path="{path}",status="{status}"',
            )
            self.metrics.observe(path, time.monotonic() - began)


async def health(request: Request) -> Response:
    """Whether requests are welcome."""
    service: Service = request.app.state.service
    if service.engine.closing:
        return JSONResponse({"status": "draining"}, 503, DRAINING)
    if not (service.ready and service.engine.healthy):
        return JSONResponse({"status": "failing" if service.ready else "starting"}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    service: Service = request.app.state.service
    kind = "text/plain; version=0.0.4; charset=utf-8"
    return PlainTextResponse(service.metrics.text(), media_type=kind)


async def models(request: Request) -> Response:
    """The one model there is."""
    return JSONResponse({"object": "list", "data": [_described(request)]})


async def model(request: Request) -> Response:
    """The model of a name."""
    name = request.app.state.service.offer.name
    if request.path_params["name"] != name:
        message = f"there is no such model here; choices: {name}"
        raise ApiError(404, message, "model", "model_not_found")
    return JSONResponse(_described(request))


async def openapi(request: Request) -> Response:
    """The description of the API for programs."""
    return JSONResponse(described(request.app.state.service.offer))


def _described(request: Request) -> dict:
    service: Service = request.app.state.service
    offer, sampling = service.offer, service.offer.sampling
    return {
        "id": offer.name,
        "object": "model",
        "created": service.created,
        "owned_by": "cogview_jax",
        "sizes": offer.sizes,
        "rows": offer.grid,
        "most_images": offer.most_images,
        "candidates": offer.ranks,
        "prompts": list(offer.prompts),
        "sampling": {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "guidance": sampling.guidance,
        },
    }


async def _nobody_reads(request: Request, error: Exception) -> Response:
    return Response(status_code=499)
