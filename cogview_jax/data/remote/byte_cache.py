"""Bytes of remote files that were read before, in a local folder of limited size.

Each part of a file is a file here, under the hash of its address, version and place, and begins
with the hash of its bytes: one that is damaged, as a machine that loses its power leaves it, is
fetched again. Any number of processes may share the folder, and files that were not used for the
longest time are deleted first.
"""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cogview_jax.runtime.faults import reason
from cogview_jax.runtime.leftovers import remove_leftovers, temporary_path

#: The folder in the user's cache.
CACHE = "cogview_jax/remote"
#: Where files are written before they get their names.
_WRITING = "writing"
_DIGEST = hashlib.sha256().digest_size
#: Old files are looked for whenever this share of the limit was written, and then so much is left.
_SHARE, _LEFT = 1 / 16, 0.9
#: Seconds after which a file counts as used again.
_USED = 60.0


class ByteCache:
    """A folder of bytes by name. Where it cannot be written, a line says so and nothing is kept."""

    def __init__(self, folder: str | os.PathLike, limit: int):
        """Makes the folder, and deletes what is too much in it.

        Args:
            folder: which; other files in it are left alone.
            limit: the most bytes; processes that write at the same time may exceed it for a moment.
        """
        self.folder, self.limit = Path(folder), limit
        self._lock, self._trimming = threading.Lock(), threading.Lock()
        self._written, self._failed = 0, False
        try:
            (self.folder / _WRITING).mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_leftovers(self.folder / _WRITING)
            self._trim()
        except OSError as error:
            self._give_up(error)

    def get(self, *name: object) -> bytes | None:
        """The bytes of a name; None where they are not there, or damaged."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            if _digest(data[_DIGEST:]) != data[:_DIGEST]:
                path.unlink(missing_ok=True)
                return None
            if time.time() - path.stat().st_mtime > _USED:
                os.utime(path)
        except OSError:
            return None
        return data[_DIGEST:]

    def put(self, data: bytes, *name: object) -> None:
        """Keeps the bytes of a name."""
        if self._failed or len(data) + _DIGEST > self.limit:
            return
        path = self._path(name)
        temporary = temporary_path(self.folder / _WRITING / path.name)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            # Not synced to the disk, which the hash makes up for.
            temporary.write_bytes(_digest(data) + data)
            os.replace(temporary, path)
            with self._lock:
                self._written += len(data) + _DIGEST
                full = self._written > self.limit * _SHARE
            if full and self._trimming.acquire(blocking=False):
                try:
                    self._trim()
                finally:
                    self._trimming.release()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._give_up(error)

    def _trim(self) -> None:
        """Deletes the files that were not used for the longest time, if all are too many."""
        with self._lock:
            self._written = 0
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        least = self.limit * _LEFT if total > self.limit * (1 - _SHARE) else total
        for _, size, path in files:
            if total <= least:
                break
            Path(path).unlink(missing_ok=True)
            total -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yields time of use, size and path of every file."""
        for folder in os.scandir(self.folder):
            if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # another process has deleted it
                    continue
                yield status.st_mtime, status.st_size, entry.path

    def _path(self, name: tuple[object, ...]) -> Path:
        digest = hashlib.sha256(repr(name).encode(errors="surrogateescape")).hexdigest()
        return self.folder / digest[:2] / digest[2:]

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            said, self._failed = self._failed, True
        if not said:
            line = f"{self.folder}: {reason(error)}: images that are read are not kept any more"
            print(line, file=sys.stderr, flush=True)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
