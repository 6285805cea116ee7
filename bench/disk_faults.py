"""The faults of a disk that fills up or fails during a run."""

import random
import signal
import time

from bench.failing_disk import BROKEN, FULL, FailingDisk
from bench.soak_faults import EVERY, Soak
from bench.supervised import Supervised

#: A disk fails for so many seconds, which is less than the time for which reads are retried.
SECONDS = 3.0
#: A log cannot be written for so many steps, which are more lines than the buffer of a file has.
LOGGED = 5 * EVERY


class DiskSoak(Soak):
    """A run on a disk that fails, with a method for each fault."""

    def __init__(
        self,
        run: Supervised,
        rng: random.Random,
        topologies: tuple[tuple[int, int], ...],
        disk: FailingDisk,
        everything: str,
    ):
        """`run` has the environment of `disk`; `everything` is part of all paths that it uses."""
        super().__init__(run, rng, topologies)
        self._disk, self._everything = disk, everything

    def _full_metrics(self) -> int:
        return self._full_log("/metrics/metrics.jsonl", "metrics")

    def _full_events(self) -> int:
        return self._full_log("/metrics/events", "metrics")

    def _full_ledger(self) -> int:
        return self._full_log("goodput.json", "the ledger")

    def _full_samples(self) -> int:
        return self._full_log("/samples/", "the sample")

    def _full_log(self, text: str, what: str) -> int:
        """Logs cannot be written for many steps."""
        run, lines, step = self._run, len(self._run.output), self._run.step
        with self._disk.fails(FULL, text):
            told = f"{what} could not be written"
            run.wait_for(lambda: run.said(told, lines), told)
            run.wait_for(lambda: run.saved[-1] >= step + LOGGED, "training to go on")
        return step

    def _full_checkpoints(self) -> int:
        run, lines, step = self._run, len(self._run.output), self._run.step
        with self._disk.fails(FULL, "/checkpoints/"):
            run.wait_for(lambda: run.said("was not saved", lines), "the failure to be reported")
        return step

    def _full_config(self) -> int:
        """The disk is full for config.json when the run starts again."""
        with self._disk.fails(FULL, "config.json"):
            step = self._signal(signal.SIGKILL, self._run.children())
            self._wait_for_failures(1, "No space left on device")
        return step

    def _full_bundle(self) -> int:
        """The disk is full for the bundle, once all steps are done."""
        with self._disk.fails(FULL, "-bundle/"):
            self._wait_for_failures(1, "No space left on device")
        return self._run.step

    def _eio_for_seconds(self) -> int:
        run, lines, step = self._run, len(self._run.output), self._run.step
        with self._disk.fails(BROKEN, self._everything):
            time.sleep(SECONDS)
        if not run.said("Input/output error", lines):
            raise AssertionError(f"nobody met the failing disk:\n{run.tail()}")
        return step

    def _eio_until_restarts(self) -> int:
        """Nothing can be read or written until the processes have failed to start three times."""
        step = self._run.step
        with self._disk.fails(BROKEN, self._everything):
            self._wait_for_failures(3, "Input/output error")
        return step

    def _eio_at_restore(self) -> int:
        """No checkpoint can be read when the run starts again. None may count as damaged."""
        run, lines = self._run, len(self._run.output)
        with self._disk.fails(BROKEN, f"{run.workdir}/checkpoints/"):
            step = self._signal(signal.SIGKILL, run.children())
            self._wait_for_failures(1, "Input/output error")
        if run.said("is damaged", lines):
            raise AssertionError(f"a failing disk made checkpoints damaged:\n{run.tail()}")
        return step

    def _wait_for_failures(self, count: int, reason: str) -> None:
        """Waits for so many ends with status 1, each after one line with the reason."""
        run, lines = self._run, len(self._run.output)
        ends = ("exited with 1 (failure)", reason)
        run.wait_for(lambda: all(run.said(words, lines) >= count for words in ends), reason)
        if run.said("Traceback", lines):
            raise AssertionError(f"expected one line, {reason}:\n{run.tail()}")


#: All faults. The last one comes when all steps are done.
KINDS = (
    *("full_metrics", "full_events", "full_ledger", "full_samples", "full_checkpoints"),
    *("full_config", "eio_for_seconds", "eio_until_restarts", "eio_at_restore", "full_bundle"),
)
