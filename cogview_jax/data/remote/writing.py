"""Writes files to a bucket, and deletes them there, with the patience of reading.

In a bucket an object is whole or not there: an upload that is cut short leaves the old one.
"""

import contextlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cogview_jax.data.remote import files
from cogview_jax.data.remote.addresses import protocol
from cogview_jax.data.remote.failures import NotThere, requested_again

#: The protocols of the services that are written to.
BUCKETS = ("gs", "s3")
#: The most bytes of a file that is read whole before it is sent, since it may be appended to.
_AT_ONCE = 64 << 20
#: Objects that are deleted at a time.
_THREADS = 8


def is_bucket(address: str) -> bool:
    """Whether an address is one of a bucket, where files can be written."""
    return protocol(address) in BUCKETS


def write_bytes(address: str, data: bytes) -> None:
    """Writes an object, in the place of what is there.

    Raises:
        NotThere: there is no such bucket.
        InputError: the user may not write there.
        SystemFault: the server goes on failing.
    """
    system = files.file_system(protocol(address))
    requested_again(lambda: system.pipe_file(address, data), address)


def upload(path: Path, address: str) -> None:
    """Copies a file to an object; errors as of `write_bytes`.

    A file that is appended to meanwhile is copied as it was at one moment, unless it is large.

    Raises:
        OSError: the file cannot be read.
    """
    if path.stat().st_size <= _AT_ONCE:
        write_bytes(address, path.read_bytes())
        return
    system = files.file_system(protocol(address))
    requested_again(lambda: system.put_file(str(path), address), address)


def delete(addresses: Collection[str]) -> None:
    """Deletes objects, those that are there."""

    def delete_one(address: str) -> None:
        system = files.file_system(protocol(address))
        with contextlib.suppress(NotThere):
            requested_again(lambda: system.rm_file(address), address)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(delete_one, addresses))
