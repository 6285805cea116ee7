"""The lines of the file that lists the images of a folder, however many they are."""

import os
from dataclasses import dataclass

from cogview_jax.data.record_index import RecordIndex
from cogview_jax.data.record_index_writer import IndexPart, open_index
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import open_regular, read_regular

#: Listings of at most so many bytes are kept in memory. Of larger ones an index says where their
#: lines begin.
IN_MEMORY = 8 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class FolderListing:
    """The lines of a listing that hold something, not decoded yet: one that is no UTF-8 costs no
    other."""

    def __init__(self, path: str):
        """Reads the listing, or opens its index, which is made first if needed.

        Raises:
            InputError: it is no regular file, or cannot be read.
            SystemFault: the machine cannot read it.
        """
        self._lines: list[tuple[int, bytes]] = []
        self._index: RecordIndex | None = None
        try:
            self.in_memory = os.path.getsize(path) <= IN_MEMORY
            if self.in_memory:
                data = retried(lambda: read_regular(path, IN_MEMORY), path)
                lines = enumerate(data.removeprefix(_BYTE_ORDER_MARK).splitlines(), 1)
                self._lines = [(number, line) for number, line in lines if line.strip()]
                return
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None
        folder, name = os.path.split(path)
        depends_on = {"kind": "lines", "file": name}
        self._index = open_index(folder, [name], LineScan(), depends_on=depends_on, beside=folder)

    def __len__(self) -> int:
        """The number of lines that hold something."""
        return len(self._lines) if self._index is None else len(self._index)

    def __getitem__(self, i: int) -> tuple[int, bytes]:
        """The number of line `i` in the file, from 1, and the line without its end.

        Raises:
            InputError: the listing was changed since it was opened.
            SystemFault: the machine cannot read it.
        """
        if self._index is None:
            return self._lines[i]
        record = self._index[i]
        return int(record.key.rpartition("/")[2]), self._index.read(record)


@dataclass(frozen=True)
class LineScan:
    """Adds the place of every line that holds something to the part of an index."""

    def __call__(self, path: str, part: IndexPart) -> None:
        """Scans the file at `path`; a line is called by its number."""
        number = offset = 0
        with open_regular(path) as file:
            for block in file:
                for line in block.splitlines(keepends=True):  # at carriage returns, too
                    number += 1
                    bare = line.rstrip(b"\r\n")
                    skipped = len(_BYTE_ORDER_MARK) if _is_marked(line, offset) else 0
                    if bare[skipped:].strip():
                        part.add(str(number), (), offset + skipped, len(bare) - skipped)
                    offset += len(line)


def _is_marked(line: bytes, offset: int) -> bool:
    return offset == 0 and line.startswith(_BYTE_ORDER_MARK)
