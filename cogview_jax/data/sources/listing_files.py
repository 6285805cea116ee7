"""Which files list the images of a folder."""

import contextlib
import json
import os

from cogview_jax.data.remote.addresses import joined
from cogview_jax.data.remote.copies import local_copy
from cogview_jax.data.remote.failures import NotThere
from cogview_jax.data.sources.folder_entries import LINE_LIMIT, csv_columns
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import open_regular

LISTING = "captions.jsonl"
#: Files that may list the images of a folder; the last two are those of Hugging Face's imagefolder.
LISTINGS = (LISTING, "metadata.jsonl", "metadata.csv")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: How a CSV file ends, the column of imagefolder that names an image, and our own.
CSV, _FILE_NAME, _FILE = ".csv", "file_name", "file"
#: The most bytes of a listing that is fetched from an address.
_COPY_LIMIT = 1 << 30


def find_listing(folder: str, *, below: bool = False) -> str:
    """The name of the listing of a folder; empty where there is none.

    Not every metadata.jsonl or metadata.csv is one: its first line has to have a file_name. A
    captions.jsonl `below` the folder of the data has to name a file in the same way.
    """
    for name in LISTINGS:
        path = os.path.join(folder, name)
        if os.path.lexists(path) and ((name == LISTING and not below) or _names_files(path)):
            return name
    return ""


def listing_copy(folder: str) -> str:
    """The path of a copy of the listing of the folder at an address.

    Raises:
        InputError: there is none, or it cannot be read.
        SystemFault: the server goes on failing.
    """
    for name in LISTINGS:
        with contextlib.suppress(NotThere):
            path = local_copy(joined(folder, name), _COPY_LIMIT)
            if name == LISTING or _names_files(path):
                return path
    raise InputError(
        f"path={folder!r}: expected a listing in it, one of {', '.join(LISTINGS)}: images at an"
        " address are not looked for without one"
    )


def _names_files(path: str) -> bool:
    def first() -> bytes:
        with open_regular(path) as file:
            return file.readline(LINE_LIMIT).removeprefix(BYTE_ORDER_MARK)

    try:
        line = retried(first, path)
        if path.endswith(CSV):
            return _FILE_NAME in csv_columns(line)
        entry = json.loads(line)
    except (InputError, OSError, ValueError, RecursionError):
        return False
    own = _FILE if os.path.basename(path) == LISTING else _FILE_NAME
    return isinstance(entry, dict) and not {own, _FILE_NAME}.isdisjoint(entry)
