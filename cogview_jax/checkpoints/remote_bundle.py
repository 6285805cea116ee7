"""Bundles at addresses: hf://OWNER/NAME, gs://BUCKET/DIR, s3://BUCKET/DIR, https://HOST/DIR.

A bundle is copied once into the user's cache (`copied_bundles`), and used from there. Each process
asks once for bundle.json, which has the hash of every part: while it says the same, nothing else is
fetched. What was copied is used once its parts have these hashes.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cogview_jax.checkpoints.bundle import FILES, Bundle
from cogview_jax.checkpoints.copied_bundles import CopiedBundles, age
from cogview_jax.checkpoints.description import NAME
from cogview_jax.data.remote.addresses import without_query
from cogview_jax.data.remote.download import download
from cogview_jax.data.remote.failures import NotThere, few_retries
from cogview_jax.data.remote.files import read_whole
from cogview_jax.data.remote.folders import file_in, files_of
from cogview_jax.data.remote.hub import hub_folder, is_hub_address
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import is_fault, reason
from cogview_jax.runtime.files import JSON_LIMIT, is_clutter

#: How often bundle.json is asked for again where there is a copy.
_RETRIES = 1
#: Of a path, what tells nothing about a bundle.
_UNNAMED = ("bundle", ".", "..")


@functools.cache
def bundle_copy(address: str) -> Path:
    """The local folder of the bundle at an address, which is copied if it is not there yet.

    Where the server does not answer, the copy of an earlier time is used, and a line says so. In
    one process an address means one bundle, whatever is written there in the meantime.

    Raises:
        InputError: there is no bundle, it may not be read, its bytes do not have the hashes that
            bundle.json says, or the cache cannot be written.
        SystemFault: the server does not answer, and there is no copy; or the disk is full.
    """
    try:
        copies = CopiedBundles()
        place = _found(address, copies)
        copies.remember(address, place)
    except OSError as error:
        if error.filename is None:
            raise
        kind = SystemFault if is_fault(error) else InputError
        raise kind(
            f"{address}: {error.filename}: {reason(error)}: bundles are copied into the cache,"
            " whose place XDG_CACHE_HOME says"
        ) from None
    except (InputError, SystemFault) as error:
        kind = SystemFault if isinstance(error, SystemFault) else InputError
        said = str(error)
        raise kind(said if said.startswith(address) else f"{address}: {said}") from None
    return place


def _found(address: str, copies: CopiedBundles) -> Path:
    """The copy of what is at the address now, or was before if nobody answers."""
    known = copies.known(address)
    if known and is_hub_address(address) and hub_folder(address).is_pinned:
        copies.use(known)
        return known
    try:
        with few_retries(_RETRIES if known else None):
            description = read_whole(file_in(address, NAME), JSON_LIMIT)
    except NotThere as error:
        raise InputError(f"{address} is no bundle, there is no {NAME} in it: {error}") from None
    except SystemFault as error:
        if known is None:
            raise SystemFault(f"{error}; there is no copy of an earlier time") from None
        line = f"{address}: {error}: the copy of {age(known)} is used, {known}"
        print(line, file=sys.stderr, flush=True)
        copies.use(known)
        return known
    place = copies.place(bundle_name(address), description)
    with copies.held(place):
        if not (place / NAME).is_file():
            _copy(address, description, place, copies)
            copies.trim()
        copies.use(place)
    return place


def _copy(address: str, description: bytes, place: Path, copies: CopiedBundles) -> None:
    """Copies a bundle to its place, where it appears once it is whole.

    What was fetched before an error stays for the next time, unless it is what is wrong.
    """
    partial = copies.partial(place)
    (partial / NAME).write_bytes(description)
    with _discarded(address, partial, place, copies):
        bundle = Bundle(partial)
    parts = {part: FILES[part] for part in FILES if part in bundle.parts}
    files = {
        name: file
        for name, file in files_of(address).items()
        if name.partition("/")[0] in parts.values() and not is_clutter(name)
    }
    download(files, partial, f"copying {address}")
    with _discarded(address, partial, place, copies):
        for part in parts:
            bundle.verified(part)
    copies.finish(place)


@contextlib.contextmanager
def _discarded(address: str, partial: Path, place: Path, copies: CopiedBundles) -> Iterator[None]:
    """Where the block finds that a bundle is damaged, its copy is deleted."""
    try:
        yield
    except InputError as error:
        copies.discard(place)
        said = str(error).replace(f"bundle {partial}", address).replace(str(partial), address)
        raise InputError(said) from None


def bundle_name(address: str) -> str:
    """What the folder of a copy is called: as the bundle's own, or its run."""
    if is_hub_address(address):
        folder = hub_folder(address)
        path = f"{folder.repository}/{folder.folder}"
    else:
        path = without_query(address).partition("://")[2]
    names = [name for name in PurePosixPath(path).parts if name not in _UNNAMED]
    return names[-1][-100:] if names else "bundle"
