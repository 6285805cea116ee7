"""Copies a workdir up into its bucket while the run goes on.

Where each host has a working copy of its own, all copy a checkpoint up together, each what its
processes wrote of it. Process 0 says which is the next; it sends the marker once the files of all
hosts are there, and everything that is no part of a checkpoint. Every step of a pass ends for all
hosts at once, well or not: so an upload that fails on one of them is tried again by all.
"""

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cogview_jax.checkpoints.manifest import find_damage
from cogview_jax.checkpoints.manifest import listed as listed_files
from cogview_jax.data.remote.addresses import joined
from cogview_jax.data.remote.bucket_lock import BucketLock
from cogview_jax.data.remote.files import listed
from cogview_jax.data.remote.writing import delete, upload
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import reason, where
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.leftovers import remove, temporary_path
from cogview_jax.runtime.processes import log
from cogview_jax.runtime.progress import waiting
from cogview_jax.tasks.working_copy import InBucket, WorkingCopy, marker_of, newest_step, step_of

T = TypeVar("T")

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

    def __init__(self, copy: WorkingCopy, lock: BucketLock, there: InBucket, sync: KVStoreSync):
        """Nothing is copied yet.

        Args:
            copy: of the workdir; that of this host.
            lock: is held by process 0, the only one that uses it.
            there: what the bucket has; kept up to date by process 0.
            sync: communicates among the processes that have a copy each, all of which call the
                same methods.
        """
        self._copy, self._lock, self._there, self._sync = copy, lock, there, sync
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._failing = False
        self._defect: BaseException | None = None
        self._passes = 0
        #: What is being sent, a folder and its marker, and the files of it that were sent.
        self._sending: tuple[str, str] = "", ""
        self._sent: set[str] = set()
        #: By their markers: folders that lacked files of a host, which may be deleted there just
        #: now; and those that are never copied.
        self._lacking: set[str] = set()
        self._unfit: set[str] = set()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def leave(self) -> None:
        """Lets the thread end by itself, and what is not copied be."""
        self._stopped.set()

    def await_whole(self, folder: str) -> None:
        """Waits until a committed folder is whole in the bucket; called on process 0.

        Raises:
            SystemFault: it cannot be copied there now.
        """
        before = self._passes
        with waiting(f"copying {folder} to {self._copy.address}"):
            while (marker := self._copy.committed().get(folder)) and (
                self._there.committed.get(folder) != marker
            ):
                # A pass that is under way now may have begun before the folder was there.
                if self._passes > before + 1 or not self._thread.is_alive():
                    raise SystemFault(f"{self._copy.address}: {folder} could not be copied there")
                time.sleep(0.1)

    def finish(self) -> None:
        """Ends the thread, and copies what is left.

        Raises:
            InputError, SystemFault: it cannot be copied. It stays where it is.
        """
        self._stopped.set()
        address = self._copy.address
        with waiting(f"copying to {address}"):
            self._thread.join()
            self._sync.together(self._raise_defect)
            try:
                self.copy_up()
                self._first(self._say_left)
            except (InputError, SystemFault, OSError) as error:
                kind = InputError if isinstance(error, InputError) else SystemFault
                left = f"{self._copy.folder} has all of the run, and {address} lacks the end of it"
                advice = "run the same command again on this machine to copy it"
                if self._copy.is_part:
                    left, advice = f"{address} lacks the end of the run", "run it again to go on"
                raise kind(f"{_line(error)}; {left}: {advice}") from error

    def copy_up(self) -> None:
        """One pass: everything that is new here.

        Raises:
            InputError: another run has taken the bucket over, or it may not be written.
            SystemFault: the server goes on failing.
        """
        new = self._first(self._begin)
        for folder in sorted(new, key=step_of, reverse=True):
            self._copy_committed(folder, new[folder])
        self._first(self._drop)

    def _raise_defect(self) -> None:
        """Raises what ended the thread."""
        if self._defect is not None:
            raise self._defect

    def _say_left(self) -> None:
        """Names what a pass has left out, though it was told to copy it."""
        for folder, marker in self._committed.items():
            fit = hashlib.sha256(marker).hexdigest() not in self._unfit
            if fit and self._there.committed.get(folder) != marker:
                log(f"{self._copy.address}: {folder} is not whole on all hosts: it is not copied")

    def _first(self, work: Callable[[], T]) -> T:
        """Lets process 0 do something, for which all wait."""
        return self._sync.together(work, self._sync.is_first)[0]

    def _begin(self) -> dict[str, str]:
        """Copies metrics and the like; the committed folders to copy then, by their markers."""
        self._lock.check()
        self._committed = self._copy.committed()
        self._copy_files()
        there = self._there.committed
        return {
            folder: hashlib.sha256(marker).hexdigest()
            for folder, marker in self._committed.items()
            if there.get(folder) != marker
        }

    def _drop(self) -> None:
        """Deletes the checkpoints in the bucket that are gone here."""
        there, here = self._there.committed, self._committed
        newest = newest_step(folder for folder in here if there.get(folder))
        for folder in [*there]:
            if folder not in here and 0 <= step_of(folder) < newest:
                self._delete(folder)
                del there[folder]

    def _repeat(self) -> None:
        """In the thread: pass after pass, until one of the processes has stopped."""
        pause = 0.0
        while True:
            self._stopped.wait(pause)
            began = time.monotonic()
            try:
                if self._is_stopped():
                    return
                self.copy_up()
            except (InputError, SystemFault, OSError) as error:
                if not self._failing and not self._stopped.is_set():
                    log(f"{_line(error)}; the run goes on, and it will be copied later")
                self._failing = True
            except BaseException as error:
                self._defect = error
                _say(f"{self._copy.address}: nothing more is copied ({type(error).__name__})")
                self._stopped.set()
                with contextlib.suppress(Exception):
                    self._is_stopped()  # the others wait for an answer
                return
            else:
                if self._failing:
                    log(f"{self._copy.address}: all that was done is copied there again")
                self._failing = False
            self._passes += 1
            pause = max(PAUSE, time.monotonic() - began)

    def _is_stopped(self) -> bool:
        """Whether one of the processes has stopped; all of them ask before a pass."""
        topic = f"{self._sync.next_number()}/stopped"
        return any(self._sync.all_gather(topic, self._stopped.is_set()))

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

    def _copy_committed(self, folder: str, marker: str) -> None:
        """Copies a checkpoint or the bundle; its marker, whose hash this is, comes last."""
        with contextlib.ExitStack() as stack:
            parts = self._sync.together(lambda: self._hold(stack, folder, marker))
            if None in parts:
                return
            if sum(here for here, _ in parts) < parts[0][1]:
                if marker in self._lacking:
                    self._unfit.add(marker)
                    log(f"{self._copy.address}: {folder} lacks files of a host: it is not copied")
                self._lacking.add(marker)
                return
            if self._sending != (folder, marker):
                self._first(lambda: self._clear(folder))
                self._sending, self._sent = (folder, marker), set()
            place, names = self._held
            self._sync.together(lambda: self._send(place, names - self._sent, self._sent.add))
            self._first(lambda: self._seal(place, folder))

    def _hold(
        self, stack: contextlib.ExitStack, folder: str, marker: str
    ) -> tuple[int, int] | None:
        """Keeps the files of a folder as they are now, until `stack` ends.

        Returns:
            How many there are here, and how many on all hosts; None if it cannot be copied now.
        """
        self._held: tuple[Path, set[str]] = self._copy.folder, set()
        if marker in self._unfit:
            return None
        place = self._copy.folder / folder
        try:
            held = stack.enter_context(self._pinned(folder))
            place, last = held / folder, marker_of(folder)
            found = hashlib.sha256((held / last).read_bytes()).hexdigest()
        except FileNotFoundError:
            found = ""
        if found != marker:  # the next pass copies the new one, or what has no name here yet
            return None if self._sync.is_first or step_of(folder) >= 0 else (0, 0)
        names = {path.relative_to(held).as_posix() for path in _files(place)} - {last}
        self._held = held, names
        if step_of(folder) < 0:
            return len(names), len(names)
        if damage := find_damage(place, whole=not self._copy.is_part):
            self._unfit.add(marker)
            _say(f"{self._copy.address}: {folder} is damaged ({damage[0]}): it is not copied")
            return None
        return len(names), len(listed_files(place))

    def _clear(self, folder: str) -> None:
        """Deletes what the bucket has of a folder."""
        if folder in self._there.committed:
            self._delete(folder)
        self._there.committed[folder] = b""

    def _seal(self, place: Path, folder: str) -> None:
        """Sends the marker of a folder."""
        self._lock.check()
        last = marker_of(folder)
        self._send(place, [last], self._sent.add)
        self._there.committed[folder] = (place / last).read_bytes()

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
            with contextlib.suppress(OSError):  # the next start does it
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
