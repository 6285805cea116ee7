"""An LMDB that is read: a file of keys and values, which the package lmdb maps into memory."""

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator

import lmdb
import numpy as np

from cogview_jax.data.record_index import stamp_of
from cogview_jax.runtime.errors import InputError

#: How the data of an LMDB are called in its folder.
DATA = "data.mdb"
#: Bytes at the beginning of a file that tell whether it is the one that is mapped.
_HEAD = 64


class LmdbFile:
    """An open LMDB; many threads may read it at once. See `opened`."""

    def __init__(self, path: str):
        self.path, self.stamp = path, stamp_of(path)
        with self._errors():
            self._environment = lmdb.open(
                path, subdir=False, readonly=True, lock=False, readahead=False
            )
            #: How many keys there are.
            self.entries: int = self._environment.stat()["entries"]
            self._longest = self._environment.max_key_size()
            pages = self._environment.info()["last_pgno"] + 1
            size = pages * self._environment.stat()["psize"]
        if self.stamp[0] < size:
            # Reading behind its end would end the process.
            self.close()
            raise InputError(f"{path}: breaks off: {self.stamp[0]} bytes, expected {size}")

    def close(self) -> None:
        """Ends it; nothing can be read from it any more."""
        self._environment.close()

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None where there is no such key.

        Raises:
            InputError: the LMDB is damaged.
        """
        with self._errors(), self._environment.begin() as transaction:
            return transaction.get(key) if 0 < len(key) <= self._longest else None

    def keys_from(self, first: bytes = b"") -> Iterator[bytes]:
        """Yields all keys from `first` on, sorted; raises as `get` does."""
        with self._errors(), self._environment.begin() as transaction:
            cursor = transaction.cursor()
            if cursor.set_range(first) if first else cursor.first():
                yield from cursor.iternext(keys=True, values=False)

    def places(self) -> Iterator[tuple[bytes, tuple[int, int] | None]]:
        """Yields all keys, and where in the file their values lie: where they begin, and bytes.

        None where the system does not tell; raises as `get` does. No value is read.
        """
        with self._errors(), self._environment.begin(buffers=True) as transaction:
            begin = _mapped_at(self.path)
            for key, value in transaction.cursor():
                place = None
                if begin is not None and len(value):
                    place = np.frombuffer(value, np.uint8).ctypes.data - begin, len(value)
                yield bytes(key), place

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            words = " ".join(str(error).replace(f"{self.path}: ", "").split())
            raise InputError(f"{self.path}: expected an LMDB, whole and closed: {words}") from None


def _mapped_at(path: str) -> int | None:
    """Where in memory a file is mapped, from its first byte on; None where that is not known."""
    try:
        with open("/proc/self/maps", errors="surrogateescape") as areas:
            found = [line.split(maxsplit=5) for line in areas if line.rstrip("\n").endswith(path)]
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    for area, _, offset, *_, name in found:
        begin = int(area.partition("-")[0], 16)
        if name.rstrip("\n") == path and not int(offset, 16):
            return begin if ctypes.string_at(begin, len(head)) == head else None
    return None


_opened: weakref.WeakValueDictionary[str, LmdbFile] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def opened(path: str) -> LmdbFile:
    """The LMDB in a file, which a process may open only once: all who read it share it.

    If it was changed since it was opened, it is opened anew.

    Raises:
        InputError: the file is no LMDB, breaks off, or is not there.
        SystemFault: the machine cannot read it.
    """
    path = os.path.realpath(path)
    with _lock:
        found = _opened.get(path)
        if found is not None and found.stamp != stamp_of(path):
            found.close()
            found = None
        if found is None:
            found = _opened[path] = LmdbFile(path)
        return found
