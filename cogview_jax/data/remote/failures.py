"""What an error of a request means: whether it may pass, and what it says in one line.

fsspec passes on what aiohttp, botocore and Google's libraries raise, each with types of its own,
and some of it as FileNotFoundError whatever the server said; so the number that the server answered
counts first. Texts of errors that may show a whole address, and with it a query, are never used.
"""

import contextlib
import contextvars
import random
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from cogview_jax.data.remote.addresses import protocol
from cogview_jax.data.remote.hub_server import error_code, is_of_hub, refusal_advice
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import is_passing, reason

T = TypeVar("T")

#: Seconds before each further try, on average.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
#: The most seconds for which a server may ask to be left alone.
_LONGEST = 60.0
#: Of a line that says that something is tried again, the seconds in which no other is written.
_QUIET = 10.0

_PASSING = {408, 425, 429, 500, 502, 503, 504}
_DENIED, _MISSING = {401, 403, 407}, {404, 410}
#: How gcsfs begins the text of an error that has no number.
_FORBIDDEN = "Forbidden: "
#: Names of types of errors, as these packages are not imported here.
_LOST = {
    *("ClientConnectionError", "ClientPayloadError"),  # aiohttp
    *("HTTPClientError", "ConnectionError", "ResponseStreamingError"),  # botocore
    *("IncompleteReadError", "ReadTimeoutError", "Timeout", "ChunkedEncodingError"),
    *("TransportError", "ChecksumError", "ProtocolError"),  # google.auth, gcsfs, urllib3
}
_ANONYMOUS = {
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"),
    *("GoogleAuthError", "SSOError", "CredentialRetrievalError", "NoAuthTokenError"),
}
#: Packages whose errors show no address with a query, as those of web servers may.
_OF_BUCKETS = ("botocore", "gcsfs", "google", "s3fs")
#: What to do where a server refuses, by protocol.
_ADVICE = {
    "s3": (
        "log in as for the AWS command line (`aws configure`), or for a public bucket set"
        " FSSPEC_S3_ANON=true"
    ),
    "gs": (
        "log in with `gcloud auth application-default login`, or for a public bucket set"
        " FSSPEC_GS_TOKEN=anon"
    ),
}
_WEB_ADVICE = "check the address, and what you may read there (a password stands in ~/.netrc)"


class NotThere(InputError):
    """There is no file at an address."""


class ShortAnswer(Exception):
    """A server sent fewer bytes than it was asked for; `reason` says so."""


@dataclass(frozen=True)
class Failure:
    """What went wrong with a request.

    Attributes:
        why: in words.
        passing: whether it may go well the next time.
        denied: whether the user may not read the file.
        missing: whether there is none.
        pause: the seconds that the server asks to wait; 0 if it says nothing.
    """

    why: str
    passing: bool = False
    denied: bool = False
    missing: bool = False
    pause: float = 0.0


class _Announcement:
    """Says at most once in a while that something is tried again, whatever many threads meet."""

    def __init__(self) -> None:
        self._lock, self._last = threading.Lock(), -_QUIET

    def __call__(self, line: str) -> None:
        with self._lock:
            if time.monotonic() - self._last < _QUIET:
                return
            self._last = time.monotonic()
        print(line, file=sys.stderr, flush=True)


_say = _Announcement()
#: How often what may pass is tried again; None for as often as there are pauses.
_retries: contextvars.ContextVar[int | None] = contextvars.ContextVar("retries", default=None)


@contextlib.contextmanager
def few_retries(count: int | None) -> Iterator[None]:
    """In the block of this thread, what may pass is tried again only so often.

    It is for requests that can be done without, and for the first at an address, which may be
    wrong. None changes nothing.
    """
    token = _retries.set(count)
    try:
        yield
    finally:
        _retries.reset(token)


def is_hasty() -> bool:
    """Whether `few_retries` holds here."""
    return _retries.get() is not None


def requested_again(work: Callable[[], T], address: str) -> T:
    """`work()`, again after longer and longer pauses while it meets what may pass.

    The pauses double, and each is longer or shorter by a random half, so that many processes that
    were refused together do not come back together.

    Args:
        work: asks for something; may be called several times.
        address: of what is asked for.

    Raises:
        NotThere: there is no such file.
        InputError: the server refuses it.
        SystemFault: it goes on failing.
    """
    for tries, pause in enumerate((*PAUSES[: _retries.get()], None), 1):
        try:
            return work()
        except (InputError, SystemFault):
            raise
        except Exception as error:
            failure = failure_of(error)
        if failure.missing:
            raise NotThere(f"{address}: {failure.why}: check the address")
        if failure.denied:
            advice = _ADVICE.get(protocol(address), _WEB_ADVICE)
            if is_of_hub(address):
                advice = refusal_advice()
            raise InputError(f"{address}: {failure.why}: {advice}")
        if not failure.passing:
            raise InputError(f"{address}: {failure.why}")
        if pause is None:
            raise SystemFault(f"{address}: {failure.why} ({tries} tries)")
        _say(f"{address}: {failure.why}; trying again")
        time.sleep(max(pause * random.uniform(0.5, 1.5), min(failure.pause, _LONGEST)))
    raise AssertionError("the last pause is None")


def failure_of(error: BaseException) -> Failure:
    """What an error of fsspec, or of what it is built on, means."""
    chain = list(_chain(error))
    for each in chain:
        if status := _status(each):
            said = error_code(getattr(each, "headers", None) or {})
            return Failure(
                f"{_phrase(status)}, {said}" if said else _phrase(status),
                passing=status in _PASSING,
                denied=status in _DENIED,
                missing=status in _MISSING,
                pause=_retry_after(each),
            )
    names = {kind.__name__ for each in chain for kind in type(each).__mro__}
    if isinstance(error, ShortAnswer):
        return Failure(str(error), passing=True)
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        return Failure("the certificate of the server cannot be verified")
    if names & _ANONYMOUS:
        return Failure("no credentials", denied=True)
    if isinstance(error, PermissionError) or str(error).startswith(_FORBIDDEN):
        return Failure(_phrase(HTTPStatus.FORBIDDEN), denied=True)
    if any(isinstance(each, TimeoutError) for each in chain):
        return Failure("no answer in time", passing=True)
    if any(isinstance(each, socket.gaierror) for each in chain):
        return Failure("the name of the server cannot be resolved", passing=True)
    if names & _LOST:
        found = next((each for each in chain if isinstance(each, OSError) and each.errno), None)
        return Failure(reason(found) if found else "the connection broke off", passing=True)
    if any(map(is_passing, chain)):
        return Failure(reason(next(filter(is_passing, chain))), passing=True)
    if isinstance(error, FileNotFoundError):
        return Failure("not found", missing=True)
    package = type(error).__module__.partition(".")[0]
    told = isinstance(error, OSError) or package in _OF_BUCKETS
    text = " ".join(str(error).split()) if told else ""
    return Failure(f"cannot be read ({text or type(error).__name__})")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and what it was raised from."""
    for _ in range(8):
        if not isinstance(error, BaseException):
            return
        yield error
        # What botocore could not connect by stands among the words of its text.
        words = getattr(error, "kwargs", None)
        named = words.get("error") if isinstance(words, dict) else None
        error = error.__cause__ or getattr(error, "os_error", None) or named


def _status(error: BaseException) -> int:
    """The number that a server answered, 400 and above; 0 where the error has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif type(error).__module__.startswith("gcsfs"):
        found = getattr(error, "code", None)
    else:  # aiohttp has errors of code 400 for bodies that break off
        found = getattr(error, "status", None)
    number = int(found) if str(found).isdecimal() else 0
    return number if 400 <= number < 600 else 0


def _phrase(status: int) -> str:
    try:
        return f"{int(status)} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def _retry_after(error: BaseException) -> float:
    headers = getattr(error, "headers", None) or {}
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0
