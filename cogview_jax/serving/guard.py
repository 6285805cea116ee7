"""What stands before every request: whose it is, how large and how often it may be."""

import asyncio
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cogview_jax.serving.api_error import LAST, ApiError, refusal
from cogview_jax.serving.jobs import Closing
from cogview_jax.serving.page_files import PAGE, STUDY_PAGE
from cogview_jax.serving.settings import Address, Limits

#: Paths that need no key: they tell nothing of anybody and change nothing.
OPEN_PATHS = (*PAGE, *STUDY_PAGE, "/health", "/openapi.json")
#: Seconds in which a request has to be there.
BODY_SECONDS = 60.0
#: Characters of a path; those of all that there is are far fewer.
MOST_OF_PATH = 1024
#: Addresses whose rate is remembered.
MOST_ADDRESSES = 10_000


class Guard:
    """Refuses requests before anything of them is read.

    A page of another site in a browser of this machine can send requests to a server here. Such
    requests name that site (Origin), or, where its name was pointed at this machine, a host that is
    none of ours.
    """

    def __init__(
        self,
        app: ASGIApp,
        address: Address,
        limits: Limits,
        closing: Callable[[], bool] = lambda: False,
    ):
        """Wraps `app`.

        Args:
            app: gets what is not refused.
            address: where the server listens.
            limits: of requests.
            closing: whether the server takes no more work.
        """
        self.app, self.address, self.limits, self.closing = app, address, limits, closing
        self._rates = _Rates(limits.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
            most = self._most_bytes(scope, headers)
        except ApiError as error:
            await error.response(scope, receive, send)
            return
        await self.app(scope, _bounded(receive, most), send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if len(scope["path"]) > MOST_OF_PATH:
            raise ApiError(414, f"the path has more than {MOST_OF_PATH} characters")
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.address.local and not _is_local(host):
            raise ApiError(403, f"host {host[:100]!r}: expected localhost", code="wrong_host")
        if origin is not None and not _is_of(origin, host):
            raise ApiError(403, "requests of other sites are refused", code="wrong_origin")
        if self.address.key and scope["path"] not in OPEN_PATHS:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(key.strip().encode(), self.address.key.encode())
            if scheme.lower() != "bearer" or not right:
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        if scope["method"] == "POST" and self.closing():
            raise refusal(Closing("the server is shutting down"))
        client = (scope.get("client") or ("",))[0]
        wait = self._rates.wait(client) if scope["method"] == "POST" else 0
        if wait:
            raise ApiError(
                429,
                f"at most {self.limits.requests_per_minute} requests a minute",
                code="rate_limit_exceeded",
                headers={"retry-after": str(wait)},
            )

    def _most_bytes(self, scope: Scope, headers: Headers) -> int:
        form = headers.get("content-type", "").lower().startswith("multipart/")
        most = self.limits.upload if form else self.limits.body
        length = headers.get("content-length")
        if length is not None and (not length.isdecimal() or int(length[:20]) > most):
            raise _too_large(most)
        return most


class _Rates:
    """Requests a minute of each address: a bucket that fills again."""

    def __init__(self, per_minute: int):
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str) -> int:
        """Seconds until the next request may come; 0 where this one may."""
        now, each = time.monotonic(), 60 / self.per_minute
        left, then = self._buckets.pop(address, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - then) / each)
        allowed = left >= 1
        self._buckets[address] = (left - allowed, now)
        while len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return 0 if allowed else max(1, round((1 - left) * each))


def _bounded(receive: Receive, most: int) -> Receive:
    """The messages of a request, whose bodies may have `most` bytes together."""
    had, whole, end = 0, False, time.monotonic() + BODY_SECONDS

    async def bounded() -> Message:
        nonlocal had, whole
        if whole:  # it waits for the client to leave
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            raise ApiError(408, "the request came too slowly", headers=LAST) from None
        had, whole = had + len(message.get("body", b"")), not message.get("more_body", False)
        if had > most:
            raise _too_large(most)
        return message

    return bounded


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is larger than {most} bytes", code="too_large")


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # such as an address in brackets that do not close
        return False
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _is_of(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False
