"""Asks for files at addresses, through fsspec: their sizes, ranges of their bytes, and lists.

Web servers are asked by the session of fsspec's own HTTP file system, whose `cat_file` takes the
whole file for the range where a server does not know ranges, and whose `info` says that a file is
missing whatever went wrong. `open` is used nowhere: it reads megabytes ahead.
"""

import functools
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from cogview_jax.data.remote.addresses import (
    INSTALLATION,
    is_web,
    protocol,
    requested,
    require_packages,
)
from cogview_jax.data.remote.failures import ShortAnswer, is_hasty, requested_again
from cogview_jax.data.remote.hub_server import authorization
from cogview_jax.runtime.errors import InputError

T = TypeVar("T")

#: Seconds without a byte, and to be connected, after which a web server does not answer.
_SILENCE, _CONNECT = 30, 20
#: The same of S3 where a request is `hasty`; botocore's names.
_HASTY_S3 = {
    "connect_timeout": 3,
    "read_timeout": 4,
    "retries": {"total_max_attempts": 1},
}
#: Where services say which version of a file they have; the first there is counts.
_TAGS = ("ETag", "generation", "etag", "Last-Modified", "LastModified", "updated")
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
_PARTIAL, _WHOLE, _BEYOND = 206, 200, 416


class RemoteStatus(NamedTuple):
    """What is known of a file.

    Attributes:
        size: its bytes.
        tag: changes when it does; empty where the server says nothing such.
    """

    size: int
    tag: str


class NoRanges(InputError):
    """The server sends whole files only.

    Attributes:
        size: the bytes of the file that was asked for; None where the server does not say.
    """

    def __init__(self, address: str, size: int | None = None):
        super().__init__(
            f"{address}: the server sends whole files, or none whose length it knows, where a part"
            " is asked for: copy the files to a server that knows byte ranges, or to a local folder"
        )
        self.size = size


def file_status(address: str) -> RemoteStatus:
    """What the server says about a file.

    Raises:
        NotThere: there is none.
        NoRanges: it cannot be read in parts.
        InputError: it cannot be read.
        SystemFault: the server goes on failing.
    """
    if is_web(address):
        return _web(_part, address, 0, 1)[0]
    system = _system(address)
    about = requested_again(lambda: system.info(address), address)
    if about.get("type") == "directory":
        raise InputError(f"{address}: expected a file, this is a folder")
    return RemoteStatus(int(about["size"]), _tag(about))


def read_range(address: str, offset: int, size: int, status: RemoteStatus) -> bytes:
    """`size` bytes of a file from `offset` on; fewer at its end.

    Args:
        address: of the file.
        offset, size: which bytes.
        status: what the file was when it was opened.

    Raises:
        InputError: it was changed since, or cannot be read.
        SystemFault: the server goes on failing.
    """
    size = max(0, min(size, status.size - offset))
    if not size:
        return b""
    if is_web(address):
        found, data = _web(_part, address, offset, size)
        if found != status:
            raise changed(address)
        return data
    system = _system(address)

    def read() -> bytes:
        data = system.cat_file(address, start=offset, end=offset + size)
        if len(data) < size:
            raise ShortAnswer(f"{len(data)} bytes came of {size}")
        if len(data) > size:
            raise NoRanges(address)
        return data

    return requested_again(read, address)


def read_whole(address: str, limit: int) -> bytes:
    """All bytes of a file of at most `limit` bytes, also of a server that knows no ranges.

    Raises:
        NotThere: there is none.
        InputError: it is larger, or cannot be read.
        SystemFault: the server goes on failing.
    """
    if is_web(address):
        return _web(_whole, address, limit)
    status = file_status(address)
    if status.size > limit:
        raise _too_large(address, status.size, limit)
    return read_range(address, 0, status.size, status)


def listed(folder: str) -> dict[str, RemoteStatus]:
    """What is known of all files in and below a folder in a bucket, by address, sorted.

    It is empty where there is no such folder. An empty object whose name ends with a slash is no
    file: the web pages of buckets make one where somebody asks for a new folder.
    """
    system = _system(folder)
    found = requested_again(lambda: system.find(folder, detail=True), folder)
    found = {name: about for name, about in found.items() if about["size"] or name[-1:] != "/"}
    return {
        f"{protocol(folder)}://{name}": RemoteStatus(int(about["size"]), _tag(about))
        for name, about in sorted(found.items())
    }


def matches(pattern: str) -> list[str]:
    """The addresses of the files that match a pattern, sorted; `**` stands for any folders."""
    system = _system(pattern)
    found = requested_again(lambda: system.glob(pattern, detail=True), pattern)
    files = sorted(name for name, about in found.items() if about["type"] != "directory")
    return [f"{protocol(pattern)}://{name}" for name in files]


def changed(address: str) -> InputError:
    """The error of a file that is another one by now."""
    return InputError(f"{address}: changed while it was read: start again")


@functools.cache
def file_system(name: str) -> Any:
    """The file system of a protocol, with the user's own settings and credentials for it."""
    require_packages(f"{name}://")
    import fsspec

    # Or gcsfs asks for the type of a bucket before each request, and over again where the user may
    # not know it, as of public buckets. Only zonal buckets need it.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    options: dict[str, Any] = {"use_listings_cache": False}
    if is_web(f"{name}://"):
        import aiohttp

        own = fsspec.config.conf.get(name, {}).get("client_kwargs", {})
        times = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
        # A compressed answer has no ranges that could be found again.
        headers = {"Accept-Encoding": "identity"} | dict(own.get("headers", {}))
        options["client_kwargs"] = {"timeout": times, "trust_env": True, **own, "headers": headers}
    try:
        return fsspec.filesystem(name, **options)
    except ImportError as error:  # a package that another one needs
        raise InputError(f"{name}://: {error}; {INSTALLATION}") from None


def _system(address: str) -> Any:
    """The file system of an address; within `few_retries` one whose client gives up soon, too.

    That of S3 repeats each request itself, for a quarter of a minute or more, and waits for a
    minute to be connected, and for an answer.
    """
    system = file_system(protocol(address))
    if not (is_hasty() and protocol(address) == "s3" and hasattr(system, "config_kwargs")):
        return system
    own = {"config_kwargs": system.config_kwargs | _HASTY_S3}
    hasty = type(system)(**system.storage_options | own)
    hasty.retries = 1  # of s3fs, beside botocore's
    return hasty


def _tag(about: Any) -> str:
    """The version of a file; a weak one counts as a strong one, as compressing makes it weak."""
    return str(next((about[name] for name in _TAGS if about.get(name)), "")).removeprefix("W/")


def _web(ask: Callable[..., Awaitable[T]], address: str, *arguments: int) -> T:
    """What a web server answers: `ask` of its file system, the address, its URL and arguments."""
    from fsspec.asyn import sync

    system, url = _system(address), requested(address)
    return requested_again(
        lambda: sync(system.loop, ask, system, address, url, *arguments), address
    )


async def _part(
    system: Any, address: str, url: str, offset: int, size: int
) -> tuple[RemoteStatus, bytes]:
    """What a web server says of a file, and a range of it; nothing of an empty file."""
    options = dict(system.kwargs)
    headers = {"Range": f"bytes={offset}-{offset + size - 1}"} | authorization(url)
    headers |= dict(options.pop("headers", {}))
    session = await system.set_session()
    async with session.get(system.encode_url(url), headers=headers, **options) as answer:
        if answer.status == _BEYOND or (answer.status == _WHOLE and answer.content_length == 0):
            return RemoteStatus(_length(answer) or 0, _tag(answer.headers)), b""
        answer.raise_for_status()
        if answer.status != _PARTIAL:  # its body would be the whole file
            raise NoRanges(address, answer.content_length)
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or found[1] is None:
            raise NoRanges(address)
        status = RemoteStatus(int(found[3]), _tag(answer.headers))
        first, last = int(found[1]), int(found[2])
        if first != offset or last >= offset + size:
            raise NoRanges(address)
        data = await answer.read()
        expected = min(size, status.size - offset)
        if len(data) != expected:
            raise ShortAnswer(f"{len(data)} bytes came of {expected}")
        return status, data


async def _whole(system: Any, address: str, url: str, limit: int) -> bytes:
    """All bytes of a file of a web server, if they are not too many."""
    options = dict(system.kwargs)
    headers = authorization(url) | dict(options.pop("headers", {}))
    session = await system.set_session()
    async with session.get(system.encode_url(url), headers=headers, **options) as answer:
        answer.raise_for_status()
        if (answer.content_length or 0) > limit:
            raise _too_large(address, answer.content_length, limit)
        pieces, size = [], 0
        async for piece in answer.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > limit:  # of a length that was not said
                raise _too_large(address, f"more than {limit}", limit)
        return b"".join(pieces)


def _too_large(address: str, size: object, limit: int) -> InputError:
    return InputError(f"{address}: {size} bytes, expected at most {limit}")


def _length(answer: Any) -> int | None:
    """The size of a file in an answer that has none of its bytes."""
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return int(found[3]) if found else None
