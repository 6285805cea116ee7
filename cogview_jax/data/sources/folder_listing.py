"""The lines of the file that lists the images of a folder, however many they are."""

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cogview_jax.data.record_index import RecordIndex
from cogview_jax.data.record_index_writer import IndexPart, open_index
from cogview_jax.data.remote.addresses import joined
from cogview_jax.data.remote.copies import local_copy
from cogview_jax.data.remote.failures import NotThere
from cogview_jax.data.sources.folder_entries import LINE_LIMIT, csv_columns
from cogview_jax.data.sources.folder_scan import LISTING, LISTINGS
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import open_regular, read_regular

#: Listings of at most so many bytes are kept in memory. Of larger ones an index says where their
#: lines begin.
IN_MEMORY = 8 << 20
#: The most bytes of one that is fetched from an address.
_COPY_LIMIT = 1 << 30
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: How a CSV file ends, and the column of Hugging Face's imagefolder that names an image.
_CSV, _FILE_NAME = ".csv", "file_name"


def find_listing(folder: str) -> str:
    """The name of the listing of a folder; empty where there is none.

    Not every metadata.jsonl or metadata.csv is one: its first line has to have a file_name.
    """
    for name in LISTINGS:
        path = os.path.join(folder, name)
        if os.path.lexists(path) and (name == LISTING or _names_files(path)):
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
            return file.readline(LINE_LIMIT).removeprefix(_BYTE_ORDER_MARK)

    try:
        line = retried(first, path)
        if path.endswith(_CSV):
            return _FILE_NAME in csv_columns(line)
        entry = json.loads(line)
    except (InputError, OSError, ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and _FILE_NAME in entry


class FolderListing:
    """The lines of a listing that hold something, not decoded yet: one that is no UTF-8 costs no
    other. Those of a CSV file are its rows, without the first, and may hold ends of lines."""

    def __init__(self, path: str):
        """Reads the listing, or opens its index, which is made first if needed.

        Raises:
            InputError: it is no regular file, or cannot be read.
            SystemFault: the machine cannot read it.
        """
        self._lines: list[tuple[int, bytes]] = []
        self._index: RecordIndex | None = None
        quoted = path.endswith(_CSV)
        #: The names of the columns of a CSV file.
        self.columns: list[str] = []
        try:
            self.in_memory = os.path.getsize(path) <= IN_MEMORY
            if self.in_memory:
                data = retried(lambda: read_regular(path, IN_MEMORY), path)
                found = _lines(io.BytesIO(data), quoted)
                self._lines = [(number, line) for number, _, line in found]
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None
        if not self.in_memory:
            folder, name = os.path.split(path)
            depends_on = {"kind": "lines", "file": name}
            scan = LineScan(quoted)
            self._index = open_index(folder, [name], scan, depends_on=depends_on, beside=folder)
        self._first = int(quoted)
        if quoted and len(self):
            self.columns = csv_columns(self[-1][1])

    def __len__(self) -> int:
        """The number of lines that hold something."""
        return max(0, len(self._lines if self._index is None else self._index) - self._first)

    def __getitem__(self, i: int) -> tuple[int, bytes]:
        """The number of line `i` in the file, from 1, and the line without its end.

        Raises:
            InputError: the listing was changed since it was opened.
            SystemFault: the machine cannot read it.
        """
        if self._index is None:
            return self._lines[i + self._first]
        record = self._index[i + self._first]
        return int(record.key.rpartition("/")[2]), self._index.read(record)


@dataclass(frozen=True)
class LineScan:
    """Adds the place of every line that holds something to the part of an index.

    Attributes:
        quoted: whether a line goes on where a quotation mark is open, as in a CSV file.
    """

    quoted: bool = False

    def __call__(self, path: str, part: IndexPart) -> None:
        """Scans the file at `path`; a line is called by its number."""
        with open_regular(path) as file:
            for number, offset, line in _lines(file, self.quoted):
                part.add(str(number), (), offset, len(line))


def _lines(file: Iterable[bytes], quoted: bool) -> Iterator[tuple[int, int, bytes]]:
    """Yields the lines that hold something: number, where they begin, and bytes without the end."""
    number = begin = 0
    lines: list[bytes] = []
    size, is_open = 0, False
    for block in file:
        for line in block.splitlines(keepends=True):  # at carriage returns, too
            number += 1
            lines.append(line)
            size += len(line)
            is_open ^= quoted and line.count(b'"') % 2 == 1
            if is_open and size <= LINE_LIMIT:  # a mark that is never closed ends somewhere
                continue
            yield from _bare(number - len(lines) + 1, begin, b"".join(lines))
            begin += size
            lines, size, is_open = [], 0, False
    if lines:
        yield from _bare(number - len(lines) + 1, begin, b"".join(lines))


def _bare(number: int, offset: int, line: bytes) -> Iterator[tuple[int, int, bytes]]:
    bare = line.rstrip(b"\r\n")
    if offset == 0:
        bare = bare.removeprefix(_BYTE_ORDER_MARK)
        offset = len(_BYTE_ORDER_MARK) if line.startswith(_BYTE_ORDER_MARK) else 0
    if bare.strip():
        yield number, offset, bare
