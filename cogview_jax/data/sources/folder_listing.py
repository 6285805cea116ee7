"""The lines of the files that list the images of a folder, however many they are."""

import functools
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cogview_jax.data.record_index import RecordIndex
from cogview_jax.data.record_index_writer import IndexPart, open_index
from cogview_jax.data.sources.folder_entries import LINE_LIMIT, csv_columns
from cogview_jax.data.sources.listing_files import BYTE_ORDER_MARK, CSV
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import open_regular, read_regular

#: Listings of at most so many bytes together are kept in memory. Of larger ones an index says where
#: their lines begin.
IN_MEMORY = 8 << 20
#: CSV files whose columns are kept in memory.
_COLUMNS = 1 << 14


@dataclass(frozen=True)
class ListedLine:
    """A line of a listing.

    Attributes:
        listing: the path of the listing within the folder of the data.
        number: that of the line, from 1.
        line: its bytes, without its end.
        columns: of a CSV file; else empty.
    """

    listing: str
    number: int
    line: bytes
    columns: Sequence[str]


class FolderListing:
    """The lines of listings that hold something, not decoded yet: one that is no UTF-8 costs no
    other. Those of a CSV file are its rows, without the first, and may hold ends of lines."""

    def __init__(self, root: str, listings: Sequence[str]):
        """Reads the listings, or opens their index, which is made first if needed.

        Args:
            root: the folder of the data.
            listings: the paths of the listings within it, in the order of their records.

        Raises:
            InputError: one is no regular file, or cannot be read.
            SystemFault: the machine cannot read it.
        """
        self._root, self.listings = root, listings
        self._lines: list[tuple[int, int, bytes]] = []
        self._index: RecordIndex | None = None
        self.columns = functools.lru_cache(_COLUMNS)(self._columns)
        paths = [os.path.join(root, name) for name in listings]
        self.in_memory = sum(map(_size, paths)) <= IN_MEMORY
        if self.in_memory:
            for file, path in enumerate(paths):
                data = io.BytesIO(_read(path))
                lines = _records(data, path.endswith(CSV))
                self._lines += [(file, number, line) for number, _, line in lines]
        else:
            one = listings[0] if len(listings) == 1 else ""
            depends_on = {"kind": "lines of listings", "file": one}
            self._index = open_index(root, listings, LineScan(), depends_on=depends_on, beside=root)

    def __len__(self) -> int:
        """The number of lines that hold something."""
        return len(self._lines if self._index is None else self._index)

    def __getitem__(self, i: int) -> ListedLine:
        """Line `i` of all.

        Raises:
            InputError: the listing was changed since it was opened.
            SystemFault: the machine cannot read it.
        """
        if self._index is None:
            file, number, line = self._lines[i]
        else:
            record = self._index[i]
            file, number = record.file, int(record.key.rpartition("/")[2])
            line = self._index.read(record)
        return ListedLine(self.listings[file], number, line, self.columns(file))

    def _columns(self, file: int) -> Sequence[str]:
        """The names of the columns of the listing of a number; empty where it is no CSV file."""
        path = os.path.join(self._root, self.listings[file])
        if not path.endswith(CSV):
            return ()

        def first() -> bytes:
            with open_regular(path) if self._index is None else self._index.open(file) as opened:
                return next((line for _, _, line in _lines(opened, quoted=True)), b"")

        try:
            return csv_columns(retried(first, path))
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None


@dataclass(frozen=True)
class LineScan:
    """Adds the place of every line that holds something to the part of an index."""

    def __call__(self, path: str, part: IndexPart) -> None:
        """Scans the file at `path`; a line is called by its number."""
        with open_regular(path) as file:
            for number, offset, line in _records(file, path.endswith(CSV)):
                part.add(str(number), (), offset, len(line))


def _size(path: str) -> int:
    try:
        return retried(lambda: os.path.getsize(path), path)
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from None


def _read(path: str) -> bytes:
    try:
        return retried(lambda: read_regular(path, IN_MEMORY), path)
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from None


def _records(file: Iterable[bytes], quoted: bool) -> Iterator[tuple[int, int, bytes]]:
    """Yields the lines that are records: of a CSV file all but the first."""
    lines = _lines(file, quoted)
    if quoted:
        next(lines, None)
    yield from lines


def _lines(file: Iterable[bytes], quoted: bool) -> Iterator[tuple[int, int, bytes]]:
    """Yields the lines that hold something: number, where they begin, and bytes without the end.

    Args:
        file: its lines.
        quoted: whether a line goes on where a quotation mark is open, as in a CSV file.
    """
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
        bare = bare.removeprefix(BYTE_ORDER_MARK)
        offset = len(BYTE_ORDER_MARK) if line.startswith(BYTE_ORDER_MARK) else 0
    if bare.strip():
        yield number, offset, bare
