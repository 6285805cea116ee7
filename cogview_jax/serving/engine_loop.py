"""The one thread that samples: jobs of all clients in one batch, whenever each came."""

import functools
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import numpy as np

from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.processes import log
from cogview_jax.sampling.continuous import ContinuousBatch
from cogview_jax.serving.jobs import (
    Closing,
    DeviceFailed,
    FairQueue,
    ImageJob,
    QueueFull,
    TimedOut,
)

#: How often the device may fail while a job is sampled. It is the same image the second time.
MOST_FAILURES = 2


class EngineLoop:
    """Samples jobs until it is closed.

    A job's image depends on its request alone: not on what is sampled beside it, nor on how often
    it had to begin anew because the device failed.

    Attributes:
        healthy: whether the last step of the device went well.
    """

    def __init__(self, batch: ContinuousBatch, columns: int, most_waiting: int):
        """Jobs are sampled once `start` is called.

        Args:
            batch: samples.
            columns: codes of a row of an image.
            most_waiting: jobs that may wait.
        """
        self.batch, self.columns, self.most_waiting = batch, columns, most_waiting
        self.healthy = True
        self._changed = threading.Condition()
        self._queue = FairQueue()
        self._running: dict[int, ImageJob] = {}
        self._beginning: list[ImageJob] = []
        self._codes: dict[int, np.ndarray] = {}
        self._cancelled: set[ImageJob] = set()
        self._done: list[tuple[ImageJob, np.ndarray]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine loop", daemon=True)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._queue)

    @property
    def rows_used(self) -> int:
        """How many rows of the batch are at work."""
        return self.batch.used

    @property
    def closing(self) -> bool:
        """Whether no more jobs are taken."""
        return self._closing

    def start(self) -> None:
        """Compiles everything, then begins."""
        self.batch.compile()
        self._thread.start()

    def submit(self, jobs: Sequence[ImageJob]) -> None:
        """Lets jobs wait: all of them or none.

        Raises:
            QueueFull: more would wait than may.
            Closing: the loop is about to end.
        """
        with self._changed:
            if self._closing:
                raise Closing("the server is shutting down")
            if len(self._queue) + len(jobs) > self.most_waiting:
                raise QueueFull(
                    f"{counted(len(self._queue), 'image')} waiting, and at most"
                    f" {self.most_waiting} may"
                )
            self._queue.add(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[ImageJob]) -> None:
        """Gives jobs up, wherever they are; of those that are sampled the rows get free."""
        with self._changed:
            for job in jobs:
                if not self._queue.remove(job):
                    self._cancelled.add(job)
            self._changed.notify()

    def refuse(self) -> None:
        """Takes no more jobs."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self, seconds: float | None = None) -> None:
        """Takes no more jobs, and waits for those there are.

        Args:
            seconds: after which the others are given up; None waits for all.
        """
        self.refuse()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._running or self._closing)
                if self._closing and not self._queue and not self._running:
                    return
                lost = self._give_up()
                begun = self._take()
            for job in lost:
                job.on_error(TimedOut("the request took too long"))
            self._guarded(functools.partial(self._begin, begun))
            self._guarded(self._advance)
            for job, codes in self._done:
                job.on_codes(codes)
            self._done.clear()

    def _give_up(self) -> list[ImageJob]:
        """Removes what was cancelled and what is too late; the latter are returned."""
        now = time.monotonic()
        lost = [job for job in self._queue if job.deadline < now]
        for job in lost:
            self._queue.remove(job)
        for number, job in list(self._running.items()):
            if job in self._cancelled or job.deadline < now:
                self.batch.remove(number)
                self._forget(number)
                lost += [] if job in self._cancelled else [job]
        self._cancelled.clear()
        return lost

    def _take(self) -> list[ImageJob]:
        """The jobs that rows are free for."""
        begun, rows = [], self.batch.used
        while (job := self._queue.first()) is not None:
            rows += self.batch.rows_of(job.request)
            if rows > self.batch.rows:
                break
            begun.append(self._queue.pop())
        return begun

    def _begin(self, jobs: list[ImageJob]) -> None:
        if not jobs:
            return
        self._beginning = jobs
        numbers = self.batch.add(
            [job.request for job in jobs], [job.prompt for job in jobs], [job.given for job in jobs]
        )
        for number, job in zip(numbers, jobs, strict=True):
            self._running[number], self._codes[number] = job, np.zeros(0, np.int32)
        self._beginning = []

    def _advance(self) -> None:
        for number, tokens in self.batch.advance().items():
            job, before = self._running[number], self._codes[number]
            self._codes[number] = codes = np.append(before, tokens)
            if number not in self.batch.work:
                self._forget(number)
            for rows in range(len(before) // self.columns, len(codes) // self.columns):
                whole = codes[: (rows + 1) * self.columns]
                self._done.append((job, whole.reshape(-1, self.columns)))
        self.healthy = True

    def _forget(self, number: int) -> None:
        del self._running[number], self._codes[number]

    def _guarded(self, work: Callable[[], None]) -> None:
        """Does what the device may fail at. Then every job begins anew, or is given up."""
        try:
            work()
        except Exception:
            self.healthy = False
            log(f"the device has failed:\n{traceback.format_exc()}")
            with self._changed:
                failed = self._again()
            for job in failed:
                job.on_error(DeviceFailed("the device has failed"))
            self._clear()

    def _again(self) -> list[ImageJob]:
        """Puts the running jobs back; those are returned that have failed too often."""
        failed = []
        for job in reversed([*self._running.values(), *self._beginning]):
            if job in self._cancelled:
                continue
            job.failures += 1
            if job.failures < MOST_FAILURES:
                self._queue.put_back(job)
            else:
                failed.append(job)
        self._running.clear()
        self._codes.clear()
        self._beginning = []
        return failed

    def _clear(self) -> None:
        """A new cache, as soon as the device gives one."""
        pause = 0.1
        while True:
            try:
                self.batch.clear()
                return
            except Exception as error:
                log(f"the device gives no memory: {error}")
            with self._changed:
                refused: list[ImageJob] = list(self._queue)
                for job in refused:
                    self._queue.remove(job)
                if self._closing:
                    return
            for job in refused:
                job.on_error(DeviceFailed("the device has failed"))
            time.sleep(pause)
            pause = min(10.0, 2 * pause)
