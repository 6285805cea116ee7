"""The faults of a run in the soak test, and their cost."""

import dataclasses
import os
import random
import re
import resource
import signal
import time
from collections.abc import Iterator, Sequence

from bench.supervised import Supervised

EVERY = 10
#: After the first two the same processes go on; after the third the run has no steps left.
GOING_ON = {"full_disk", "second_train", "eio_for_seconds"}
GOING_ON |= {f"full_{kind}" for kind in ("metrics", "events", "ledger", "samples", "checkpoints")}
LAST = "full_bundle"


@dataclasses.dataclass
class Fault:
    """A fault: its kind, the logged step at which it happened, and its cost."""

    kind: str
    step: int
    resumed: int
    seconds: float

    @property
    def lost(self) -> int:
        """Returns the number of steps that had to be done again."""
        return max(0, self.step - self.resumed)


class Soak:
    """A run, with a method for each fault."""

    def __init__(
        self, run: Supervised, rng: random.Random, topologies: tuple[tuple[int, int], ...]
    ):
        """The run starts on the first of `topologies`, and may be moved to the others."""
        self._run, self._rng, self._topologies = run, rng, topologies
        self._topology = topologies[0]

    def go(self, kinds: Sequence[str], steps: int) -> Iterator[Fault]:
        """Starts the run, causes the faults one after the other, and waits for its end."""
        self._run.start(self._topology)
        for number, kind in enumerate(kinds):
            # A random point within this fault's share of the steps that are left. A run without a
            # checkpoint could not be continued, so the first two intervals are left out.
            here = max(self._run.step, 2 * EVERY)
            share = max(1, (steps - here - 2 * EVERY) // (len(kinds) - number))
            target = here + 1 + self._rng.randrange(min(share, 2 * EVERY))
            self._run.wait_for(lambda target=target: self._run.step >= target, f"step {target}")
            yield self._do(kind)
        self._run.finish()

    def _do(self, kind: str) -> Fault:
        run, lines = self._run, len(self._run.output)
        began = time.monotonic()
        pids = run.children()
        step = getattr(self, f"_{kind}")()
        if kind in GOING_ON:
            run.wait_for(lambda: run.step > step, "training to go on")
            if pids != run.children():
                raise AssertionError(f"{kind} ended the processes:\n{run.tail()}")
            return Fault(kind, step, step, time.monotonic() - began)
        run.wait_for(lambda: run.resumed(lines), f"the run to continue after {kind}")
        resumed = run.resumed(lines)[-1]
        if kind == LAST:  # No step is left.
            return Fault(kind, step, resumed, time.monotonic() - began)
        run.wait_for(lambda: run.step > resumed and self._fresh(began), "a step after that")
        return Fault(kind, step, resumed, time.monotonic() - began)

    def _fresh(self, began: float) -> bool:
        """Returns whether the ledger was written by the start after the fault."""
        path = self._run.workdir / "metrics" / "goodput.json"
        return path.stat().st_mtime > time.time() - (time.monotonic() - began)

    def _signal(self, number: int, pids: list[int]) -> int:
        step = self._run.step
        for pid in pids:
            os.kill(pid, number)
        return step

    def _one_killed(self) -> int:
        return self._signal(signal.SIGKILL, [self._rng.choice(self._run.children())])

    def _all_killed(self) -> int:
        return self._signal(signal.SIGKILL, self._run.children())

    def _killed_while_saving(self) -> int:
        before = self._checkpoints()
        self._run.wait_for(lambda: self._checkpoints() - before, "a checkpoint to begin")
        return self._one_killed()

    def _asked_to_stop(self) -> int:
        return self._signal(signal.SIGTERM, [self._rng.choice(self._run.children())])

    def _one_frozen(self) -> int:
        return self._signal(signal.SIGSTOP, [self._rng.choice(self._run.children())])

    def _bit_flipped(self) -> int:
        """Flips a bit of the newest checkpoint; then everything starts again."""
        self._run.wait_for(lambda: len(self._run.saved) > 1, "a second checkpoint")
        step = self._signal(signal.SIGSTOP, self._run.children())
        newest = self._run.workdir / "checkpoints" / str(max(self._run.saved))
        files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
        path = self._rng.choice(sorted(files))
        data = bytearray(path.read_bytes())
        data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        path.write_bytes(data)
        self._signal(signal.SIGKILL, self._run.children())
        return step

    def _checkpoints(self) -> set[str]:
        """Returns the names in the folder of checkpoints, with those that are half written."""
        folder = self._run.workdir / "checkpoints"
        return set(os.listdir(folder)) if folder.is_dir() else set()

    def _full_disk(self) -> int:
        """Lets no file grow beyond a few bytes until a checkpoint could not be written."""
        run, lines, pids = self._run, len(self._run.output), self._run.children()
        step = run.step
        most = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
        for pid, (_, hard) in zip(pids, most, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (64, hard))
        run.wait_for(lambda: run.said("was not saved", lines), "the failure to be reported")
        for pid, limits in zip(pids, most, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        return step

    def _other_hosts(self) -> int:
        self._run.stop()
        step = self._run.step
        others = [topology for topology in self._topologies if topology != self._topology]
        self._topology = self._rng.choice(others)
        self._run.start(self._topology)
        return step

    def _second_train(self) -> int:
        """Starts another `train` in the workdir, which must be refused and change nothing."""
        run, (processes, devices) = self._run, self._topology
        step, files = run.step, (run.workdir / ".train.lock", run.workdir / "config.json")
        before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
        second = run.second(processes * devices)
        while second.poll() is None:
            # The run must not end meanwhile, and heartbeats have to go through.
            self._signal(signal.SIGSTOP, run.children())
            time.sleep(1.0)
            self._signal(signal.SIGCONT, run.children())
            time.sleep(0.1)
        told = second.communicate()[1]
        if before != [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]:
            raise AssertionError(f"a second train has changed {files}")
        line = re.fullmatch(r"error: the workdir .* is in use by process (\d+) on .*\n", told)
        if second.returncode != 2 or not line or int(line[1]) not in run.children():
            raise AssertionError(f"a second train ended with {second.returncode}:\n{told}")
        return step
