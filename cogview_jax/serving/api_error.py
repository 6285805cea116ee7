"""Errors as OpenAI's clients read them."""

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from cogview_jax.serving.jobs import Closing, DeviceFailed, QueueFull, Refused, TimedOut

#: Clients ask again by themselves unless this header says no.
LAST = {"x-should-retry": "false"}
#: Of a server that is about to end: others may take the request, after so many seconds this one.
DRAINING = {**LAST, "retry-after": "10"}


class ApiError(Exception):
    """What is wrong with a request, or with the server.

    Attributes:
        status: of HTTP.
        message: one line for people.
        param: the field that is wrong.
        code: for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = {},
    ):
        """See the attributes."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers)

    @property
    def body(self) -> dict:
        """As JSON has it."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kinds.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def response(self) -> JSONResponse:
        """As HTTP has it."""
        return JSONResponse(self.body, self.status, self.headers)


def refusal(error: Refused) -> ApiError:
    """What a client is told of a job that the loop does not do."""
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", headers={"retry-after": "2"})
    if isinstance(error, Closing):
        return ApiError(503, str(error), code="shutting_down", headers=DRAINING)
    if isinstance(error, TimedOut):
        return ApiError(504, str(error), code="timeout", headers=LAST)
    assert isinstance(error, DeviceFailed), error
    return ApiError(503, str(error), code="device_error", headers={"retry-after": "2"})


async def respond(request: Request, error: Exception) -> JSONResponse:
    """The response to an error of any kind; what it does not know is nobody's business."""
    if isinstance(error, ApiError):
        return error.response
    if isinstance(error, Refused):
        return refusal(error).response
    return unknown().response


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """The response where no path, or none with this method, is asked for."""
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, str(error.detail), headers=error.headers or {}).response


def unknown() -> ApiError:
    """What a client is told of a defect of ours."""
    return ApiError(500, "the server has failed; its log says why", headers=LAST)
