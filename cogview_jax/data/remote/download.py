"""Copies files at addresses into a local folder, several at a time."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cogview_jax.data.remote.files import (
    NoRanges,
    RemoteStatus,
    file_status,
    read_range,
    read_whole,
)
from cogview_jax.data.remote.folders import RemoteFile
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.files import write_file
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.progress import Progress

S = TypeVar("S")
T = TypeVar("T")

#: Files that are fetched at a time, and bytes of one that are asked for at once.
_FILES, _PIECE = 16, 16 << 20
#: The most bytes of a file of a server that sends whole files only.
_WHOLE = 1 << 30
_MB = 10**6


def download(files: Mapping[str, RemoteFile], folder: Path, label: str) -> None:
    """Copies files into a folder, which shows how far it is.

    A file that has its name is whole: those that an earlier call has left there are not fetched
    again if their sizes are right.

    Args:
        files: by their names within the folder, which lead nowhere else.
        folder: where; nobody else writes there.
        label: of the progress.

    Raises:
        InputError: a file is not there, cannot be read, or changes meanwhile.
        SystemFault: the server goes on failing, or the disk is full.
    """
    for below in [folder, *folder.rglob("*/")]:
        remove_leftovers(below, owned=True)
    with _Workers() as workers:
        found = workers.all(lambda name: _asked(folder / name, files[name]), list(files))
        missing = [each for each in found if not each.is_there()]
        total, left = (sum(each.size for each in files) for files in (found, missing))
        _check_space(folder, left)
        if not missing:
            return
        with _Bytes(total, label) as done:
            done.add(total - left)
            workers.all(lambda each: each.fetch(done, workers.stopped), missing)


@dataclass(frozen=True)
class _File:
    """A file to copy.

    path: of its copy. status: None where the server sends it only whole. size: 0 if not known.
    """

    path: Path
    address: str
    size: int
    status: RemoteStatus | None

    def is_there(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == self.size

    def fetch(self, done: "_Bytes", stopped: threading.Event) -> None:
        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                for data in self._pieces():
                    if stopped.is_set():
                        raise InputError(f"{self.address}: given up")
                    file.write(data)
                    done.add(len(data))

        write_file(self.path, write)

    def _pieces(self) -> Iterator[bytes]:
        if self.status is None:
            yield read_whole(self.address, _WHOLE)
            return
        for offset in range(0, self.size, _PIECE):
            yield read_range(self.address, offset, _PIECE, self.status)


def _asked(path: Path, file: RemoteFile) -> _File:
    address = file.address
    try:
        status = file.status or file_status(address)
        return _File(path, address, status.size, status)
    except NoRanges as error:
        return _File(path, address, error.size or 0, None)


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise SystemFault(
            f"{folder}: {size / 1e9:.1f} GB are to be copied there, and {free / 1e9:.1f} GB are"
            " free"
        )


class _Bytes:
    """The progress of many threads, in MB."""

    def __init__(self, total: int, label: str):
        self._progress = Progress(max(1, total // _MB), label, unit="MB")
        self._done, self._lock = 0, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress.reach(min(self._done // _MB, self._progress.total))

    def __enter__(self) -> "_Bytes":
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if exception == (None, None, None):
            self._progress.reach(self._progress.total)
        self._progress.__exit__(*exception)


class _Workers:
    """Threads; where one fails, the others stop as soon as they can."""

    def __init__(self) -> None:
        self._pool, self.stopped = ThreadPoolExecutor(_FILES), threading.Event()

    def all(self, work: Callable[[S], T], each: Sequence[S]) -> list[T]:
        return list(self._pool.map(work, each))

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is not None:
            self.stopped.set()
        self._pool.shutdown(cancel_futures=kind is not None)
