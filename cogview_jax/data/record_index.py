"""An index of records that lie in files of others: where each begins, its name and its captions.

An index is a folder that holds, however many records there are, nothing that a process has to keep
in memory:

    records.npy    one row of 24 bytes a record (`RECORD`), and one behind the last
    texts.bin      of each record its key and its captions, in UTF-8, with a NUL between two
    index.json     the files, with size and time of change, and what was counted; sealed
    watched.bin    what it depends on beside the files: paths, with size and time of change

`record_index_writer` makes it. Rows and texts are read one by one, so that what the system keeps of
them in memory belongs to all processes and to none, and so that a disk that fails is an error and
no signal that ends the process, as it would be for mapped memory.
"""

import os
import struct
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.records import BadRecord, printable
from cogview_jax.data.remote.addresses import is_address, joined
from cogview_jax.data.remote.files import RemoteStatus, changed, file_status
from cogview_jax.data.remote.reader import RemoteReader
from cogview_jax.data.windowed_file import FileStream, WindowedFile
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import open_regular, read_at
from cogview_jax.runtime.sealed import read_sealed

VERSION = 1
#: What tells that a file was changed: its size, and its time of change in nanoseconds or, of a
#: remote one, its version.
Stamp: TypeAlias = tuple[int, int | str]
#: Of what was not there: as soon as it is, something was changed.
ABSENT: Stamp = (-1, -1)
#: The files of an index.
RECORDS, TEXTS, DESCRIPTION = "records.npy", "texts.bin", "index.json"
WATCHED = "watched.bin"
#: A record: the number of its file, the bytes of its image and where they begin in the file, and
#: where its texts begin in texts.bin. A record that cannot be used has no bytes, and its texts are
#: its key and the reason.
RECORD = np.dtype([("file", "<u4"), ("size", "<u4"), ("offset", "<u8"), ("text", "<u8")])
_ROWS = struct.Struct("<IIQQ 16xQ")
#: The size of an image that is not stored in one piece, such as a compressed one. Its offset is a
#: number by which whoever reads the file finds it.
NO_PLACE = 2**32 - 1
#: What every index counts: records with a caption, and bad ones, of which the first is noted.
CAPTIONED, BAD = "captioned", "bad"
#: Bytes of a .npy file before the description of its array, whose length is the last two of them.
_HEADER = 10
#: Bytes of what is watched that are read at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class IndexedRecord:
    """What an index knows of a record: its name, captions, and the place of its image."""

    key: str
    captions: tuple[str, ...]
    file: int
    offset: int
    size: int


class RecordIndex:
    """An index that is read; many threads may do so at once."""

    def __init__(
        self,
        folder: str | os.PathLike,
        root: str | os.PathLike,
        reader: RemoteReader | None = None,
    ):
        """Opens an index, whose size does not matter.

        Args:
            folder: that of the index.
            root: the folder in which the indexed files lie, or its address.
            reader: reads the files at an address.

        Raises:
            InputError: the index is damaged, or of another version.
            OSError: there is none.
            SystemFault: the machine cannot read it.
        """
        self.folder, self._root, self._reader = Path(folder), os.fspath(root), reader
        description = retried(lambda: read_sealed(self.folder / DESCRIPTION), str(folder))
        if description.get("version") != VERSION:
            raise InputError(f"{folder}: of another version of this program")
        self._description: dict[str, Any] = description
        self.files: list[str] = [name for name, *_ in description["files"]]
        self._prefixes = [f"{printable(name)}/" if name else "" for name in self.files]
        self._count: int = description["records"]
        self._rows, rows = _opened(self.folder / RECORDS)
        self._texts, texts = _opened(self.folder / TEXTS)
        weakref.finalize(self, os.close, self._rows)
        weakref.finalize(self, os.close, self._texts)
        self._header = _HEADER + int.from_bytes(self._read(self._rows, 2, _HEADER - 2), "little")
        expected = (self._header + RECORD.itemsize * (self._count + 1), description["text_bytes"])
        if (rows, texts) != expected:
            raise InputError(f"{folder}: damaged: its files do not have the sizes they had")

    def __len__(self) -> int:
        """The number of records, good and bad."""
        return self._count

    def __getitem__(self, i: int) -> IndexedRecord:
        """What is known of record `i`, whose file is not opened.

        Raises:
            BadRecord: it was found to be unusable when the index was made.
            InputError: the index is damaged.
            SystemFault: the machine cannot read the index.
        """
        key, texts, (file, size, offset) = self._row(i)
        if not size:
            raise BadRecord(key, texts[0])
        return IndexedRecord(key, tuple(texts), file, offset, size)

    def key(self, i: int) -> str:
        """The name of record `i`: FILE/KEY, or KEY alone where the file is the root itself."""
        return self._row(i)[0]

    def read(self, record: IndexedRecord) -> bytes:
        """The bytes of the image of a record.

        Raises:
            InputError: the file is gone or was changed since the index was opened.
            SystemFault: the machine cannot read it.
        """
        path = self.path(record.file)
        if self._reader is not None:
            size, version = self._stamp(record.file)
            status = RemoteStatus(size, str(version))
            return self._reader.read(path, record.offset, record.size, status)

        def data() -> bytes:
            with self._open(record.file) as file:
                return read_at(file.fileno(), record.size, record.offset)

        try:
            return retried(data, path)
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None

    def open(self, number: int) -> BufferedReader:
        """Opens the file of a number; raises as `read` does."""
        path = self.path(number)
        if self._reader is not None:
            remote = WindowedFile(path)
            self.require_unchanged(number)
            return BufferedReader(FileStream(remote))
        try:
            return retried(lambda: self._open(number), path)
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None

    def require_unchanged(self, number: int) -> None:
        """InputError if the file of a number is gone or was changed since the index was made."""
        if stamp_of(path := self.path(number)) != self._stamp(number):
            raise changed(path)

    def path(self, number: int) -> str:
        """The path of the file of a number."""
        return path_within(self._root, self.files[number])

    @property
    def counts(self) -> Counter[str]:
        """What was counted when the index was made, by the words of who made it; 0 of the rest."""
        return Counter(self._description["counts"])

    @property
    def notes(self) -> dict[str, str]:
        """What else was noted then."""
        return self._description["notes"]

    def ignored(self) -> Ignored:
        """The entries of files that are no records; a new object each time."""
        found = Ignored()
        found.update({reason: (n, name) for reason, (n, name) in self._description["ignored"]})
        return found

    def difference(self, files: dict[str, Stamp]) -> str:
        """How the indexed files differ from those that there are; empty where they do not.

        Args:
            files: from their paths to their stamps, in order.
        """
        if list(files) != self.files:
            added, gone = ({*files} - {*self.files}), ({*self.files} - {*files})
            for names, what in ((added, "new"), (gone, "gone")):
                if names:
                    return f"{len(names)} of its files {'are' if len(names) > 1 else 'is'} {what}"
            return "the order of its files is another"
        for number, (name, found) in enumerate(files.items()):
            if found != self._stamp(number):
                return f"{name or self._root} was changed"
        return self._watched_difference()

    def _watched_difference(self) -> str:
        """How what the index depends on beside its files differs; one by one, from disk."""
        if not self._description.get("watched_bytes"):
            return ""
        for name, before in self._watched():
            try:
                found = stamp_of(path_within(self._root, name))
            except InputError:
                found = ABSENT
            if found != before:
                place = name.removesuffix(f"/{os.curdir}")
                return f"{place} {'is gone' if found == ABSENT else 'was changed'}"
        return ""

    def _watched(self) -> Iterator[tuple[str, Stamp]]:
        with open_regular(self.folder / WATCHED) as file:
            rest = b""
            while block := retried(lambda: file.read(_BLOCK), file.name):
                *entries, rest = (rest + block).split(b"\0")
                for entry in entries:
                    size, time, name = entry.split(b" ", 2)
                    yield os.fsdecode(name), (int(size), int(time))

    def _open(self, number: int) -> BufferedReader:
        path = self.path(number)
        file = open_regular(path)
        if stamp(os.fstat(file.fileno())) != self._stamp(number):
            file.close()
            raise changed(path)
        return file

    def _stamp(self, number: int) -> Stamp:
        _, size, version = self._description["files"][number]
        return size, version

    def _row(self, i: int) -> tuple[str, list[str], tuple[int, int, int]]:
        if not 0 <= i < self._count:
            raise IndexError(f"record {i} of {self._count}")
        place = self._header + RECORD.itemsize * i
        row = self._read(self._rows, _ROWS.size, place)
        try:
            file, size, offset, begin, end = _ROWS.unpack(row)
            inside = begin <= end <= self._description["text_bytes"]
            if not inside or (size != NO_PLACE and offset + size > self._stamp(file)[0]):
                raise ValueError
            found = self._read(self._texts, end - begin, begin)
            if len(found) < end - begin:
                raise ValueError
            key, *texts = found.decode().split("\0")
        except (IndexError, ValueError, struct.error):
            raise InputError(f"{self.folder}: damaged: delete it, and it is made anew") from None
        return f"{self._prefixes[file]}{key}", texts, (file, size, offset)

    def _read(self, descriptor: int, size: int, offset: int) -> bytes:
        return retried(lambda: read_at(descriptor, size, offset), str(self.folder))


def path_within(root: str, name: str) -> str:
    """The path of an indexed file in its folder, or its address."""
    return joined(root, name) if is_address(root) else os.path.join(root, name)


def stamp(status: os.stat_result) -> Stamp:
    """What tells that a local file was changed."""
    return status.st_size, status.st_mtime_ns


def stamp_of(path: str) -> Stamp:
    """The stamp of the file at a path or an address.

    Raises:
        InputError: it is not there, or cannot be read.
        SystemFault: the machine, or that which has it, fails.
    """
    if is_address(path):
        return file_status(path)
    try:
        return stamp(retried(lambda: os.stat(path), path))
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from None


def _opened(path: Path) -> tuple[int, int]:
    """A descriptor of the file, and its size."""

    def opened() -> int:
        with open_regular(path) as file:
            return os.dup(file.fileno())

    descriptor = retried(opened, str(path))
    return descriptor, os.fstat(descriptor).st_size
