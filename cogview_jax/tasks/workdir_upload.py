"""Copies a workdir up into its bucket while the run goes on."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cogview_jax.checkpoints.manifest import find_damage
from cogview_jax.data.remote.addresses import joined
from cogview_jax.data.remote.bucket_lock import BucketLock
from cogview_jax.data.remote.files import listed
from cogview_jax.data.remote.writing import delete, upload
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import reason, where
from cogview_jax.runtime.leftovers import remove, temporary_path
from cogview_jax.runtime.progress import waiting
from cogview_jax.tasks.working_copy import InBucket, WorkingCopy, marker_of, newest_step, step_of

#: Seconds between two passes; more where a pass takes longer.
PAUSE = 20.0
#: Files that are sent at a time.
_THREADS = 8


class WorkdirUpload:
    """Copies up, in a thread, what is new in a working copy.

    A pass takes note of the checkpoints that are whole before it copies metrics and other files:
    so the metrics in the bucket are never older than its checkpoints. A checkpoint is compared with
    its hashes before it is copied, and deleted in the bucket once a newer one is whole there.
    """

    def __init__(self, copy: WorkingCopy, lock: BucketLock, there: InBucket):
        """Nothing is copied yet.

        Args:
            copy: of the workdir.
            lock: is held.
            there: what the bucket has; kept up to date.
        """
        self._copy, self._lock, self._there = copy, lock, there
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._failing = False
        self._defect: BaseException | None = None
        #: What is being sent, a folder and its marker, and the files of it that were sent.
        self._sending: tuple[str, bytes] = "", b""
        self._sent: set[str] = set()
        self._damaged: set[bytes] = set()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def leave(self) -> None:
        """Lets the thread end by itself, and what is not copied be."""
        self._stopped.set()

    def finish(self) -> None:
        """Ends the thread, and copies what is left.

        Raises:
            InputError, SystemFault: it cannot be copied. It stays where it is.
        """
        self._stopped.set()
        address = self._copy.address
        with waiting(f"copying to {address}"):
            self._thread.join()
            if self._defect is not None:
                raise self._defect
            try:
                self.copy_up()
            except (InputError, SystemFault, OSError) as error:
                kind = InputError if isinstance(error, InputError) else SystemFault
                raise kind(
                    f"{_line(error)}; {self._copy.folder} has all of the run, and {address} lacks"
                    " the end of it: run the same command again on this machine to copy it"
                ) from error

    def copy_up(self) -> None:
        """One pass: everything that is new here.

        Raises:
            InputError: another run has taken the bucket over, or it may not be written.
            SystemFault: the server goes on failing.
        """
        self._lock.check()
        committed = self._copy.committed()
        self._copy_files()
        for folder in sorted(committed, key=step_of, reverse=True):
            if self._there.committed.get(folder) != committed[folder]:
                self._copy_committed(folder, committed[folder])
        there = self._there.committed
        newest = newest_step(folder for folder in committed if there.get(folder))
        for folder in [*there]:
            if folder not in committed and 0 <= step_of(folder) < newest:
                self._delete(folder)
                del there[folder]

    def _repeat(self) -> None:
        """In the thread: pass after pass."""
        pause = 0.0
        while not self._stopped.wait(pause):
            began = time.monotonic()
            try:
                self.copy_up()
            except (InputError, SystemFault, OSError) as error:
                if not self._failing:
                    _say(f"{_line(error)}; the run goes on, and it will be copied later")
                self._failing = True
            except BaseException as error:
                self._defect = error
                _say(f"{self._copy.address}: nothing more is copied ({type(error).__name__})")
                return
            else:
                if self._failing:
                    _say(f"{self._copy.address}: all that was done is copied there again")
                self._failing = False
            pause = max(PAUSE, time.monotonic() - began)

    def _copy_files(self) -> None:
        """Copies files outside committed folders that were changed since they were copied."""
        files, known = self._copy.files(), self._there.files
        changed = [name for name in files if known.get(name) != files[name]]
        for name in changed:
            known.pop(name, None)
        describing = [name for name in changed if name.endswith(".json")]  # what others hold
        try:
            for names in ([*{*changed} - {*describing}], describing):
                self._send(self._copy.folder, names, lambda name: known.update({name: files[name]}))
        finally:
            if changed:
                self._copy.note_sent(known)

    def _copy_committed(self, folder: str, marker: bytes) -> None:
        """Copies a checkpoint or the bundle; its marker comes last."""
        if marker in self._damaged:
            return
        with contextlib.suppress(FileNotFoundError), self._pinned(folder) as held:
            place, last = held / folder, marker_of(folder)
            if (held / last).read_bytes() != marker:  # the next pass copies the new one
                return
            if step_of(folder) >= 0 and (damage := find_damage(place)):
                self._damaged.add(marker)
                _say(f"{self._copy.folder / folder} is damaged ({damage[0]}): it is not copied")
                return
            if self._sending != (folder, marker):
                if folder in self._there.committed:
                    self._delete(folder)
                self._sending, self._sent = (folder, marker), set()
            self._there.committed[folder] = b""
            names = {path.relative_to(held).as_posix() for path in _files(place)} - {last}
            self._send(held, names - self._sent, self._sent.add)
            self._lock.check()
            self._send(held, [last], self._sent.add)
            self._there.committed[folder] = marker

    @contextlib.contextmanager
    def _pinned(self, folder: str) -> Iterator[Path]:
        """A folder that holds `folder` as it is now, though it may be deleted meanwhile.

        Its files have second names there. Where the file system knows none it is the workdir.
        """
        held = temporary_path(self._copy.home / "sending")
        try:
            for path in _files(self._copy.folder / folder):
                name = held / path.relative_to(self._copy.folder)
                name.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, name)
                except FileNotFoundError:
                    raise
                except OSError:
                    remove(held)
                    yield self._copy.folder
                    return
            yield held
        finally:
            remove(held)

    def _send(self, place: Path, names: Collection[str], done: Callable[[str], object]) -> None:
        """Copies files of a folder, which are called the same there; `done` is told of each."""
        failed = threading.Event()

        def send(name: str) -> None:
            if failed.is_set():
                return
            try:
                upload(place / name, joined(self._copy.address, name))
            except FileNotFoundError:
                if place != self._copy.folder:
                    raise
                return  # of the workdir, where it was deleted
            except BaseException:
                failed.set()
                raise
            done(name)

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(send, names))

    def _delete(self, folder: str) -> None:
        """Deletes a committed folder in the bucket, its marker first."""
        delete([joined(self._copy.address, marker_of(folder))])
        delete(listed(f"{joined(self._copy.address, folder)}/"))


def _files(folder: Path) -> list[Path]:
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]


def _line(error: Exception) -> str:
    """An error in one line."""
    return f"{where(error)}{reason(error)}" if isinstance(error, OSError) else str(error)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
