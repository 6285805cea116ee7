"""Where the values of a Parquet column of bytes lie in the file, if they are stored as they are.

A column chunk is a row of pages, each behind its header (Apache Parquet, parquet.thrift and "Data
Pages"). A page that is neither compressed nor dictionary-encoded holds its values one behind the
other, each after its length; those of images are passed over, so that finding them costs little.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cogview_jax.data.sources.thrift_compact import read_struct, read_varint
from cogview_jax.data.windowed_file import WindowedFile
from cogview_jax.runtime.errors import InputError

#: Types of pages, and the encodings that are read, by their numbers in parquet.thrift.
_DATA, _INDEX, _DATA_V2 = 0, 1, 3
_PLAIN, _RLE = 0, 3
#: A header is at most so long: it may hold the smallest and the largest value.
_HEADER_LIMIT = 64 << 20


class Place(NamedTuple):
    """Where a value begins in the file, and how many bytes it has."""

    offset: int
    size: int


def value_places(
    file: WindowedFile, begin: int, size: int, rows: int, max_level: int
) -> Iterator[Place | None]:
    """Yields the place of each value of a column chunk, None for null.

    Args:
        file: the Parquet file.
        begin: where its first page begins.
        size: bytes of all pages with their headers.
        rows: how many values it has; none of them is a list.
        max_level: the definition level of a value that is there.

    Raises:
        InputError: the file is damaged there, or the chunk is stored in another way.
        SystemFault: the machine cannot read it.
    """
    position, end = begin, begin + size
    if begin < 0 or size < 0 or end > file.size:
        raise damaged(file, begin, "a column that reaches beyond the end of the file")
    while rows:
        if position >= end:
            raise damaged(file, position, f"{rows} values of a column are missing")
        header, data = _header(file, position, end)
        kind, length = header.get(1), _count(header.get(3))
        if length is None or data + length > end:
            raise damaged(file, position, "a page that reaches beyond its column")
        if kind in (_DATA, _DATA_V2):
            page = _Page(file, position, data, length, kind == _DATA_V2, header)
            present, values = page.present(rows, max_level)
            rows -= len(present)
            yield from _walk(file, present, values, data + length)
        elif kind != _INDEX:
            raise damaged(file, position, f"an unexpected page of type {kind}")
        position = data + length


def _walk(file: WindowedFile, present: np.ndarray, at: int, end: int) -> Iterator[Place | None]:
    """Yields the places of the values of a page, the first of which begins at `at`."""
    for there in present.tolist():
        if not there:
            yield None
            continue
        size = int.from_bytes(file.read(at, 4), "little") if at + 4 <= end else end
        if at + 4 + size > end:
            raise damaged(file, at, "a value that reaches beyond its page")
        yield Place(at + 4, size)
        at += 4 + size
    if at != end:
        raise damaged(file, at, f"{end - at} bytes behind the last value of a page")


class _Page(NamedTuple):
    """A page of values: where its header and its data begin, the length of these, its version."""

    file: WindowedFile
    position: int
    data: int
    length: int
    second: bool
    header: dict[int, Any]

    def present(self, most: int, max_level: int) -> tuple[np.ndarray, int]:
        """Which of at most so many values are there, and where the first of them begins."""
        about = self.header.get(8 if self.second else 5)
        about = about if isinstance(about, dict) else {}
        count, encoding = _count(about.get(1)), about.get(4 if self.second else 2)
        level_encoding = _RLE if self.second or not max_level else about.get(3)
        if encoding != _PLAIN or level_encoding != _RLE:
            raise self._damaged("a page that is not encoded as the end of the file says")
        if not count or count > most:
            raise self._damaged(f"a page of {count} values: expected 1 to {most}")
        begin = self.data
        if not max_level:
            return np.ones(count, bool), begin
        if self.second:
            size = _count(about.get(5))
        else:
            size, begin = int.from_bytes(self.file.read(begin, 4), "little"), begin + 4
        if size is None or begin + size > self.data + self.length:
            raise self._damaged("definition levels that reach beyond their page")
        levels = _hybrid(self.file.read(begin, size), max_level.bit_length(), count)
        if len(levels) < count or levels.max() > max_level:
            raise self._damaged("definition levels that cannot be read")
        return levels == max_level, begin + size

    def _damaged(self, what: str) -> InputError:
        return damaged(self.file, self.position, what)


def _hybrid(data: bytes, width: int, count: int) -> np.ndarray:
    """Up to `count` numbers of `width` bits each, in runs of one value or packed ("RLE")."""
    runs: list[np.ndarray] = []
    at = 0
    while at < len(data) and count > 0:
        try:
            head, at = read_varint(data, at)
        except IndexError:
            break
        if head & 1:
            bits = np.frombuffer(data[at : at + (head >> 1) * width], np.uint8)
            at += (head >> 1) * width
            bits = np.unpackbits(bits, bitorder="little")
            run = bits[: len(bits) // width * width].reshape(-1, width) @ (1 << np.arange(width))
        else:
            value = int.from_bytes(data[at : at + (width + 7) // 8], "little")
            at += (width + 7) // 8
            run = np.full(min(head >> 1, count), value)
        runs.append(run[:count])
        count -= len(runs[-1])
    return np.concatenate(runs) if runs else np.zeros(0, int)


def _header(file: WindowedFile, position: int, end: int) -> tuple[dict[int, Any], int]:
    """The fields of a page's header by their numbers, and where it ends."""
    size = 1 << 10
    while True:
        size = min(size, end - position, _HEADER_LIMIT)
        data = file.read(position, size)
        try:
            header, length = read_struct(data)
            return header, position + length
        except IndexError:  # it is longer
            if size == min(end - position, _HEADER_LIMIT):
                raise damaged(file, position, "expected the header of a page") from None
            size *= 8
        except ValueError:
            raise damaged(file, position, "expected the header of a page") from None


def _count(value: Any) -> int | None:
    """A number that is none of negative ones; None for anything else."""
    return value if isinstance(value, int) and value >= 0 else None


def damaged(file: WindowedFile, position: int, what: str) -> InputError:
    """The error of a file that is damaged at a position."""
    return InputError(
        f"{file.path}: damaged at byte {position}: {what}; get it anew, or leave it out"
    )
