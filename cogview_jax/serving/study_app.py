"""The page on which people rate a study, and what it asks the server for.

Nothing that is sent tells whose an image is: images have numbers in an order that differs from
caption to caption and from rater to rater, and the server alone knows it.
"""

import os
from contextlib import closing

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cogview_jax.evaluation.human_study import QUESTIONS, Study, open_study
from cogview_jax.evaluation.study_ratings import (
    Rating,
    append_rating,
    rater_name,
    raters,
    rating_of,
    read_ratings,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason
from cogview_jax.runtime.processes import log
from cogview_jax.serving.api_error import ApiError, http_error, respond
from cogview_jax.serving.fields import json_fields
from cogview_jax.serving.guard import Guard
from cogview_jax.serving.listening import answer, bound_socket
from cogview_jax.serving.page_files import STUDY_PAGE, page_routes
from cogview_jax.serving.settings import KEY_VARIABLE, Address, Limits

_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


def serve_study(folder: str, host: str, port: int, limits: Limits) -> None:
    """Lets people rate a study until SIGTERM or SIGINT.

    Raises:
        InputError: there is no such study, a file of it is damaged, or the port is taken.
    """
    address = Address(host, port, os.environ.get(KEY_VARIABLE) or None)
    with closing(bound_socket(address)) as bound:
        study = open_study(folder)
        for rater in raters(study):
            had = read_ratings(study, rater)
            log(f"{rater} has rated {len(had)} of {len(study.captions)} captions")
        answer(study_app(study, address, limits), f"the study {folder}", bound, limits.seconds)


def study_app(study: Study, address: Address, limits: Limits) -> Starlette:
    """The application, which answers for a study."""
    app = Starlette(
        routes=[
            *page_routes(STUDY_PAGE),
            Route("/health", _health),
            Route("/study/{rater}", _progress),
            Route("/study/{rater}/{place:int}", _comparison, methods=["GET"]),
            Route("/study/{rater}/{place:int}", _rate, methods=["POST"]),
            Route("/study/{rater}/{place:int}/{image:int}.png", _image),
        ],
        middleware=[Middleware(Guard, address=address, limits=limits)],
        exception_handlers={ApiError: respond, HTTPException: http_error, Exception: respond},
    )
    app.state.study = study
    return app


def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _progress(request: Request) -> Response:
    """How far a rater is, and what is asked."""
    study, rater = request.app.state.study, _rater(request)
    had = _ratings(study, rater)
    order = study.caption_order(rater)
    return _sent(
        {
            "rater": rater,
            "captions": len(order),
            "rated": [place for place, caption in enumerate(order) if caption in had],
            "images": len(study.systems),
            "questions": [question._asdict() for question in QUESTIONS],
        }
    )


def _comparison(request: Request) -> Response:
    """A caption, and what the rater has said of its images before."""
    study, rater = request.app.state.study, _rater(request)
    caption = _caption(request, study, rater)
    had, order = _ratings(study, rater).get(caption), study.system_order(rater, caption)
    rating = had and {
        "scores": [had.scores[name] for name in order],
        "best": order.index(had.best) + 1,
    }
    return _sent({"caption": study.captions[caption], "rating": rating})


def _image(request: Request) -> Response:
    """The pixels of an image, by its place in the rater's order, from 1."""
    study, rater = request.app.state.study, _rater(request)
    caption, image = _caption(request, study, rater), request.path_params["image"]
    order = study.system_order(rater, caption)
    if not 1 <= image <= len(order):
        raise ApiError(404, f"there is no image {image}: expected 1 to {len(order)}")
    try:
        data = study.png(caption, order[image - 1])
    except (InputError, OSError) as error:
        raise _damaged(error) from error
    return Response(data, headers=_HEADERS, media_type="image/png")


async def _rate(request: Request) -> Response:
    """Keeps what a rater says; whatever was said before of the same caption counts no more."""
    study, rater = request.app.state.study, _rater(request)
    caption = _caption(request, study, rater)
    fields = await json_fields(request, ("scores", "best"))
    order = study.system_order(rater, caption)
    scores, best = fields.values.get("scores"), fields.integer("best", 0, 1, len(order))
    try:
        if not isinstance(scores, list):
            raise InputError("no list")
        rating = rating_of(study, dict(zip(order, scores, strict=True)), order[best - 1])
    except ValueError:  # whose words name systems
        raise ApiError(400, _expected(len(order)), "scores") from None
    await run_in_threadpool(_keep, study, rater, caption, rating)
    return _sent({"rated": len(_ratings(study, rater))})


def _keep(study: Study, rater: str, caption: int, rating: Rating) -> None:
    try:
        append_rating(study, rater, caption, rating)
    except OSError as error:
        log(f"a rating of {rater} could not be kept: {error}")
        raise ApiError(503, f"the rating could not be kept: {reason(error)}") from error


def _expected(images: int) -> str:
    asked = ", ".join(f"{question.name} (1 to {question.most})" for question in QUESTIONS)
    return f"scores: expected a list of {images} objects, each with {asked}"


def _rater(request: Request) -> str:
    try:
        return rater_name(request.path_params["rater"])
    except InputError as error:
        raise ApiError(400, str(error), "rater") from None


def _caption(request: Request, study: Study, rater: str) -> int:
    """The number of the caption at a place in the rater's order, from 0."""
    place, order = request.path_params["place"], study.caption_order(rater)
    if place >= len(order):
        raise ApiError(404, f"there is no caption {place}: expected 0 to {len(order) - 1}")
    return order[place]


def _ratings(study: Study, rater: str) -> dict[int, Rating]:
    try:
        return read_ratings(study, rater)
    except (InputError, OSError) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> ApiError:
    log(str(error))
    return ApiError(500, "a file of the study is damaged; the server's log says which")


def _sent(found: dict) -> Response:
    return JSONResponse(found, headers=_HEADERS)
