"""Faults at random points of a run, and whether it ends where the unbroken run ends.

    python -m bench.soak [--faults 20] [--steps 400] [--seed 0] [--out DIR]

A small image tokenizer trains on the CPU under launch/local.py while things happen to it: one
process or all of them killed, also while a checkpoint is written; SIGTERM to one process; a process
that freezes; a bit flipped in the newest checkpoint; a disk that is full when a checkpoint is due;
another number of hosts. Two runs take half of the faults each. The one that stays two processes of
four devices must end bit for bit where its unbroken twin ends; the one that moves between one, two
and four processes must end where a run of one process ends, to 1e-6 of each array's largest value.
Prints a table and writes bench/results/soak.json; exits with 1 if something was not survived.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.runtime.distributed import PREEMPTED
from cogview_jax.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "soak.json"
#: Processes, and devices of each: one run of eight devices on one, two and four hosts.
TOPOLOGIES = ((2, 4), (1, 8), (4, 2))
HEARTBEAT, EVERY = 6, 10


@dataclasses.dataclass
class Fault:
    """What happened, at which logged step, and what it cost."""

    kind: str
    step: int
    resumed: int
    seconds: float

    @property
    def lost(self) -> int:
        """Steps that had to be done again."""
        return max(0, self.step - self.resumed)


class Supervised:
    """A training run in a workdir, under the supervisor; `start` it again after it has stopped."""

    def __init__(self, workdir: Path, arguments: list[str]):
        """The door's `arguments` without --workdir."""
        self.workdir, self._arguments = workdir, arguments
        self.output: list[str] = []
        self._process: subprocess.Popen | None = None

    def start(self, topology: tuple[int, int]) -> None:
        """Starts the supervisor, with so many processes of so many devices each."""
        processes, devices = topology
        command = [sys.executable, str(ROOT / "launch" / "local.py"), "-n", str(processes)]
        command += ["--max_restarts", "100", "--backoff", "0.1", "--grace", "60", "--"]
        command += [sys.executable, "-m", "cogview_jax.train", f"--workdir={self.workdir}"]
        command += [f"--heartbeat_timeout={HEARTBEAT}", "--shutdown_timeout=20", *self._arguments]
        # More devices than cores: the compiled programs are small, and the cache has them all.
        environ = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def stop(self) -> None:
        """Asks the supervisor to stop; the state must be saved, and the status say so."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(timeout=120)
        if status != PREEMPTED and not self.finished:
            raise AssertionError(f"stopping gave status {status}:\n{self.tail()}")

    def finish(self, timeout: float = 3600) -> None:
        """Waits for the end of the run, which must be a good one."""
        status = self._process.wait(timeout)
        if status:
            raise AssertionError(f"the run ended with status {status}:\n{self.tail()}")

    def kill(self) -> None:
        """Ends it, however it stands."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def finished(self) -> bool:
        """Whether the bundle is there."""
        return (self.workdir / "bundle").is_dir()

    @property
    def step(self) -> int:
        """The last step that was logged."""
        lines = self._logged()
        return json.loads(lines[-1])["step"] if lines else 0

    def children(self) -> list[int]:
        """The process ids of the training processes."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(path.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == self._process.pid:
                found.append(int(path.parent.name))
        return sorted(found)

    def wait_for(self, ready: Callable[[], bool], what: str, timeout: float = 300) -> None:
        """Returns when `ready()`; the supervisor must not end before."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self._process.poll() is not None:
                raise AssertionError(f"it ended while waiting for {what}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout:.0f} s for {what}:\n{self.tail()}")
            time.sleep(0.01)

    def resumed(self, since: int) -> list[int]:
        """After which steps the starts continued whose output comes after line `since`."""
        found = (re.search(r"continues after step (\d+) of", line) for line in self.output[since:])
        return [int(match[1]) for match in found if match]

    def tail(self) -> str:
        """The last lines of output."""
        return "".join(self.output[-40:])

    def _logged(self) -> list[str]:
        path = self.workdir / "metrics" / "metrics.jsonl"
        try:
            return [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
        except FileNotFoundError:
            return []

    def _read(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            self.output.append(line)


class Soak:
    """One run and the faults it gets."""

    def __init__(
        self, run: Supervised, rng: random.Random, topologies: tuple[tuple[int, int], ...]
    ):
        """`topologies`: the first to start with, the others to be moved to."""
        self._run, self._rng, self._topologies = run, rng, topologies
        self._topology = topologies[0]

    def go(self, kinds: Sequence[str], steps: int) -> Iterator[Fault]:
        """Starts the run, does the faults one after the other, and waits for its end."""
        self._run.start(self._topology)
        for number, kind in enumerate(kinds):
            # A random point within this fault's share of the steps that are left; before there is a
            # checkpoint nothing is to be continued.
            here = max(self._run.step, 2 * EVERY)
            share = max(1, (steps - here - 2 * EVERY) // (len(kinds) - number))
            target = here + 1 + self._rng.randrange(min(share, 2 * EVERY))
            self._run.wait_for(lambda target=target: self._run.step >= target, f"step {target}")
            yield self._do(kind)
        self._run.finish()

    def _do(self, kind: str) -> Fault:
        run, lines = self._run, len(self._run.output)
        began = time.monotonic()
        step = getattr(self, f"_{kind}")()
        if kind == "full_disk":  # the same processes go on
            return Fault(kind, step, step, time.monotonic() - began)
        run.wait_for(lambda: run.resumed(lines), f"the run to continue after {kind}")
        resumed = run.resumed(lines)[-1]
        run.wait_for(lambda: run.step > resumed and self._fresh(began), "a step after that")
        return Fault(kind, step, resumed, time.monotonic() - began)

    def _fresh(self, began: float) -> bool:
        """Whether the ledger was written by the start that came after the fault."""
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
        """A bit of the newest checkpoint, and then everything starts again."""

        def saved() -> list[int]:
            return [int(name) for name in self._checkpoints() if name.isdigit()]

        self._run.wait_for(lambda: len(saved()) > 1, "a second checkpoint")
        step = self._signal(signal.SIGSTOP, self._run.children())
        newest = self._run.workdir / "checkpoints" / str(max(saved()))
        files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
        path = self._rng.choice(sorted(files))
        data = bytearray(path.read_bytes())
        data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        path.write_bytes(data)
        self._signal(signal.SIGKILL, self._run.children())
        return step

    def _checkpoints(self) -> set[str]:
        """What lies in the folder of checkpoints, half-written ones too."""
        folder = self._run.workdir / "checkpoints"
        return set(os.listdir(folder)) if folder.is_dir() else set()

    def _full_disk(self) -> int:
        """No file may grow beyond a few bytes, until a checkpoint could not be written."""
        run, lines, pids = self._run, len(self._run.output), self._run.children()
        step = run.step
        most = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
        for pid, (_, hard) in zip(pids, most, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (64, hard))
        run.wait_for(
            lambda: any("was not saved" in line for line in run.output[lines:]),
            "the failure to be reported",
        )
        for pid, limits in zip(pids, most, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        run.wait_for(lambda: run.step > step, "training to go on")
        if pids != run.children():
            raise AssertionError(f"a full disk ended the processes:\n{run.tail()}")
        return step

    def _other_hosts(self) -> int:
        self._run.stop()
        step = self._run.step
        others = [topology for topology in self._topologies if topology != self._topology]
        self._topology = self._rng.choice(others)
        self._run.start(self._topology)
        return step


#: What can happen to a run that keeps its topology, and to one that is moved.
STAYING = (
    *("one_killed", "asked_to_stop", "bit_flipped", "full_disk", "killed_while_saving"),
    *("all_killed", "one_frozen"),
)
# One process that freezes has no peer to miss it: that is for runs of several.
MOVING = ("other_hosts", "one_killed", "bit_flipped", "all_killed", "asked_to_stop")


def arguments(folder: Path, steps: int, fsdp: int) -> list[str]:
    """The demo's image tokenizer, as small as it gets."""
    settings = {
        "data.source.path": folder / "drawings",
        "data.source.size": 16,
        "data.source.train_count": 64,
        "model.image_size": 16,
        "model.channels": "(8,16)",
        "model.codebook": 16,
        "model.code_width": 8,
        "model.residual_blocks": 0,
        "train.steps": steps,
        "train.global_batch": 8,
        "train.log_every": 1,
        "train.checkpoint_every": EVERY,
        "train.sample_every": 0,
        "mesh.data": 2,
        "mesh.fsdp": fsdp,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return ["--config=configs/demo_codec.py", *flags]


def final(workdir: Path) -> list[np.ndarray]:
    """Parameters and codebook at the end of a run."""
    part = Bundle(workdir / "bundle").codec()
    return [np.asarray(leaf) for leaf in jax.tree.leaves((part.params, part.codebook))]


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference in any array, as a share of the array's largest value."""
    return max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
        for a, b in zip(ours, theirs, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to happen to one run.

    topologies: the first is where it starts, the others where it may be moved. faults: their kinds,
    one after the other. unbroken: the topology of the run it is held against.
    """

    name: str
    topologies: tuple[tuple[int, int], ...]
    faults: tuple[str, ...]
    unbroken: tuple[int, int]

    @property
    def tolerance(self) -> float:
        """How far apart the ends may be: the same arithmetic gives the same bits."""
        return 0.0 if self.topologies == (self.unbroken,) else 1e-6


def full_plans(faults: int) -> tuple[Plan, Plan]:
    """Half of the faults to a run that stays, half to one that moves."""
    stay = tuple(STAYING[i % len(STAYING)] for i in range(faults - faults // 2))
    move = tuple(MOVING[i % len(MOVING)] for i in range(faults // 2))
    return (
        Plan("same topology", TOPOLOGIES[:1], stay, TOPOLOGIES[0]),
        Plan("moving", TOPOLOGIES, move, TOPOLOGIES[1]),
    )


def soak(folder: Path, plans: Sequence[Plan], steps: int, seed: int, fsdp: int = 4) -> dict:
    """Runs everything in `folder`; the result is what soak.json holds."""
    rng = random.Random(seed)
    flags = arguments(folder, steps, fsdp)
    result = {"jax": jax.__version__, "steps": steps, "checkpoint_every": EVERY, "runs": {}}
    for plan in plans:
        name = plan.name
        unbroken = Supervised(folder / f"{name} unbroken", flags)
        broken = Supervised(folder / name, flags)
        try:
            unbroken.start(plan.unbroken)
            unbroken.finish()
            found = []
            for fault in Soak(broken, rng, plan.topologies).go(plan.faults, steps):
                print(
                    f"  {name:14} {fault.kind:20} step {fault.step:4}  lost {fault.lost:3}"
                    f"  {fault.seconds:5.1f} s",
                    flush=True,
                )
                found.append(dataclasses.asdict(fault) | {"lost": fault.lost})
        finally:
            unbroken.kill()
            broken.kill()
        apart = difference(final(broken.workdir), final(unbroken.workdir))
        result["runs"][name] = {
            "faults": found,
            "difference": apart,
            "tolerance": plan.tolerance,
            "equal": apart <= plan.tolerance,
        }
    return result


def main() -> None:
    """Runs, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"--out {given.out} exists: remove it, or name another folder")
    result = soak(given.out, full_plans(given.faults), given.steps, given.seed)
    write_json(RESULT, result)
    everything = [fault for run in result["runs"].values() for fault in run["faults"]]
    lost = sum(fault["lost"] for fault in everything)
    slowest = max(fault["seconds"] for fault in everything)
    mean = sum(fault["seconds"] for fault in everything) / len(everything)
    print(
        f"{len(everything)} faults survived, {lost} steps lost (a checkpoint every {EVERY}),"
        f" {mean:.1f} s to recover on average, {slowest:.1f} s at most"
    )
    for name, run in result["runs"].items():
        verdict = "equal" if run["equal"] else "NOT equal"
        print(f"{name}: {verdict}, largest difference {run['difference']:.2g}")
    sys.exit(not all(run["equal"] for run in result["runs"].values()))


if __name__ == "__main__":
    main()
