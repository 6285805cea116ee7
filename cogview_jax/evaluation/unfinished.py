"""The folder of an evaluation that several processes share, and which of them writes the report.

They have nothing in common but files, so any of them may be killed, and others may join. Process 0
of a launcher writes the report; of processes that were started by hand, the first. The others
compute their part of the rows, and measure with them what the next rows depend on.

.OUT.unfinished.lock              held by the process that writes the report
OUT.unfinished/job.json           what is evaluated
OUT.unfinished/.reader-*.lock     held by each of the others
OUT.unfinished/.written           the report is there: who leaves last deletes the folder
"""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cogview_jax.evaluation.job import begin_job, is_blank, is_of, own_job
from cogview_jax.runtime.leftovers import remove_leftovers, temporary_path
from cogview_jax.runtime.lock import claimed, locked
from cogview_jax.runtime.processes import STARTED, host_name
from cogview_jax.runtime.progress import waiting

#: Seconds for which a process of a launcher waits for process 0 to begin; another for the one that
#: holds the lock; and between two looks.
PATIENCE, MOMENT, PAUSE = 600.0, 3.0, 0.1
_WRITTEN = ".written"


class Unfinished:
    """What an evaluation has measured so far.

    Attributes:
        folder: OUT.unfinished.
    """

    def __init__(self, out: str, job: Mapping[str, Any]):
        """Nothing is written.

        Args:
            out: the report.
            job: all that the evaluation is asked for, as JSON has it.
        """
        self.folder, self._out, self._job = Path(f"{out}.unfinished"), Path(out), job
        self._lock = self.folder.with_name(f".{self.folder.name}.lock")
        self._what = f"the report {out}"

    @contextlib.contextmanager
    def joined(self, process: int | None, *, shared: bool) -> Iterator[bool | None]:
        """Takes part in the block.

        Args:
            process: the number that a launcher gave this process; None without a launcher.
            shared: whether others may take part.

        Yields:
            Whether this process writes the report; None where there is nothing to do for it.

        Raises:
            InputError: the folder is of another evaluation, or another process, which lets nobody
                take part, writes the report.
        """
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            first = not (shared and process)
            if first and shared and process is None:
                first = held.enter_context(claimed(self._lock, fresh=False))
            elif first:
                held.enter_context(locked(self._lock, self._what, "choose another --out"))
            patience = MOMENT if process is None else PATIENCE
            held.enter_context(self._reporting() if first else self._helping(patience))
            if first or self._is_open():
                yield first
                return
            why = "written, or not begun: there is nothing to do for this process"
            print(f"{self._what} is {why}", file=sys.stderr, flush=True)
            yield None

    def written(self) -> None:
        """Says to the others that the report is there."""
        (self.folder / _WRITTEN).touch()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        if (self.folder / _WRITTEN).exists():
            with waiting(f"{self._what}: other processes still read what the last one is of"):
                while self._is_read():
                    time.sleep(PAUSE)
            self._remove()
        remove_leftovers(self.folder.parent)
        own_job(self.folder, self._job)
        try:
            yield
        finally:
            if (self.folder / _WRITTEN).exists() or is_blank(self.folder):
                self._delete()

    @contextlib.contextmanager
    def _helping(self, patience: float) -> Iterator[None]:
        self._await(patience)
        lock = self.folder / f".reader-{host_name()}-{os.getpid()}.lock"
        try:
            with claimed(lock, fresh=False):
                yield
        finally:
            if (self.folder / _WRITTEN).exists():
                self._delete()

    def _await(self, patience: float) -> None:
        """Waits until the evaluation is begun, or over."""
        deadline = time.monotonic() + patience
        while not self._is_open():
            with contextlib.suppress(FileNotFoundError):
                if self._out.stat().st_mtime >= STARTED:
                    return
            if time.monotonic() > deadline:
                if self.folder.exists():
                    begin_job(self.folder, self._job)  # says what differs
                return
            time.sleep(PAUSE)

    def _is_open(self) -> bool:
        return is_of(self.folder, self._job) and not (self.folder / _WRITTEN).exists()

    def _is_read(self) -> bool:
        for lock in self.folder.glob(".reader-*.lock"):
            with claimed(lock, fresh=False) as left:
                if not left:
                    return True
        return False

    def _delete(self) -> None:
        if not self._is_read():
            self._remove()

    def _remove(self) -> None:
        # Under another name: half deleted, it would seem to be one that is not written yet.
        aside = temporary_path(self.folder)
        with contextlib.suppress(FileNotFoundError):  # another that leaves was faster
            os.rename(self.folder, aside)
            shutil.rmtree(aside, ignore_errors=True)
