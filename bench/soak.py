"""Tests whether a run with faults at random points ends where the unbroken run ends.

    python -m bench.soak [--parts processes disk jobs] [--faults 20] [--steps 400] [--out DIR]

A small image tokenizer trains on the CPU under launch/local.py while things happen to it: one
process or all of them killed, also while a checkpoint is written; SIGTERM to one process; a process
that freezes; a bit flipped in the newest checkpoint; a disk that is full when a checkpoint is due;
another number of hosts. Two runs take half of the faults each. The one that stays two processes of
four devices must end bit for bit where its unbroken twin ends; the one that moves between one, two
and four processes must end where a run of one process ends, to 1e-6 of each array's largest value.

A third run, of two processes, is on a disk that fails (failing_disk.c): full for each kind of file
in turn (metrics and events for fifty steps, the ledger, samples, checkpoints, config.json at a
restart, the bundle); failing with EIO for three seconds, at a restart while checkpoints are read,
and until the processes have ended with status 1 three times. A second `train` in its workdir must
be refused with status 2 and change nothing. It must end bit for bit as its twin, with the loss of
every step in metrics.jsonl.

Then `prepare` and `sample` meet a disk that is full at each file they write, one start after the
other, and one that fails while images or the bundle are read; what they leave must equal, byte
for byte, what one start leaves. The last two parts need a C compiler and are left out without one.

Prints a table and writes bench/results/soak.json; exits with 1 if something was not survived.
"""

import argparse
import dataclasses
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from bench import disk_faults
from bench.failing_disk import FailingDisk
from bench.soak_faults import EVERY, Soak
from bench.soak_jobs import Jobs
from bench.supervised import ROOT, Supervised
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.runtime.files import write_json

PARTS = ("processes", "disk", "jobs")
RESULT = Path(__file__).parent / "results" / "soak.json"
#: The number of processes, and the devices of each: eight devices on one, two and four hosts.
TOPOLOGIES = ((2, 4), (1, 8), (4, 2))

#: The faults of a run that keeps its topology, and of one that is moved.
STAYING = (
    *("one_killed", "asked_to_stop", "bit_flipped", "full_disk", "killed_while_saving"),
    *("all_killed", "one_frozen"),
)
# A single process that freezes has no peer to notice it, so several are needed.
MOVING = ("other_hosts", "one_killed", "bit_flipped", "all_killed", "asked_to_stop")


def arguments(folder: Path, steps: int, fsdp: int, sample_every: int) -> list[str]:
    """Returns the arguments for the image tokenizer of the demo, as small as possible."""
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
        "train.sample_every": sample_every,
        "mesh.data": 2,
        "mesh.fsdp": fsdp,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return ["--config=configs/demo_codec.py", *flags]


def final(workdir: Path) -> list[np.ndarray]:
    """Returns the parameters and the codebook at the end of a run."""
    part = Bundle(workdir / "bundle").codec()
    return [np.asarray(leaf) for leaf in jax.tree.leaves((part.params, part.codebook))]


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Returns the largest difference in any array, as a share of its largest value."""
    return max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
        for a, b in zip(ours, theirs, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The faults of one run.

    Attributes:
        topologies: the run starts on the first, and may be moved to the others.
        faults: the kinds of the faults, in their order.
        unbroken: the topology of the run with which it is compared.
    """

    name: str
    topologies: tuple[tuple[int, int], ...]
    faults: tuple[str, ...]
    unbroken: tuple[int, int]

    @property
    def tolerance(self) -> float:
        """Returns how far apart the ends may be; the same arithmetic gives the same bits."""
        return 0.0 if self.topologies == (self.unbroken,) else 1e-6

    @property
    def sample_every(self) -> int:
        """Returns the steps between two samples, which take a while."""
        return 2 * EVERY if "full_samples" in self.faults else 0


def process_plans(faults: int) -> tuple[Plan, ...]:
    """Gives half of the faults to a run that stays, and half to one that moves."""
    stay = tuple(STAYING[i % len(STAYING)] for i in range(faults - faults // 2))
    move = tuple(MOVING[i % len(MOVING)] for i in range(faults // 2))
    return (
        Plan("same topology", TOPOLOGIES[:1], stay, TOPOLOGIES[0]),
        Plan("moving", TOPOLOGIES, move, TOPOLOGIES[1]),
    )


def disk_plan() -> Plan:
    """Gives every fault of a disk, and a second `train`, once to a run."""
    kinds = ("second_train", *disk_faults.KINDS)
    return Plan("failing disk", TOPOLOGIES[:1], kinds, TOPOLOGIES[0])


def make_soak(
    run: Path, flags: list[str], rng: random.Random, plan: Plan
) -> tuple[Supervised, Soak]:
    """Returns a run in the workdir `run`, on a disk that can fail if the plan says so."""
    if not set(plan.faults) & set(disk_faults.KINDS):
        broken = Supervised(run, flags)
        return broken, Soak(broken, rng, plan.topologies)
    disk = FailingDisk(run.parent / "failing")
    broken = Supervised(run, flags, disk.environ)
    return broken, disk_faults.DiskSoak(broken, rng, plan.topologies, disk, f"{run.parent}/")


def soak(folder: Path, plans: Sequence[Plan], steps: int, seed: int, fsdp: int = 4) -> dict:
    """Runs all parts in `folder`; returns the content of soak.json."""
    rng = random.Random(seed)
    result = {"jax": jax.__version__, "steps": steps, "checkpoint_every": EVERY, "runs": {}}
    for plan in plans:
        name = plan.name
        flags = arguments(folder, steps, fsdp, plan.sample_every)
        unbroken = Supervised(folder / f"{name} unbroken", flags)
        broken, faults = make_soak(folder / name, flags, rng, plan)
        try:
            unbroken.start(plan.unbroken)
            unbroken.finish()
            found = []
            for fault in faults.go(plan.faults, steps):
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
        logged = [step for step, _ in broken.losses] == [*range(1, steps + 1)]
        if not plan.tolerance:
            logged = logged and broken.losses == unbroken.losses
        result["runs"][name] = {
            "faults": found,
            "difference": apart,
            "tolerance": plan.tolerance,
            "equal": logged and apart <= plan.tolerance,
        }
    return result


def soak_jobs(folder: Path) -> dict[str, dict]:
    """Returns the faults of `prepare` and `sample`, and whether their outputs are right."""
    codec = Supervised(folder / "codec", arguments(folder, EVERY, 1, 0))
    codec.start((1, 2))
    codec.finish()
    jobs = Jobs(folder / "jobs", codec.workdir / "bundle")
    return {"prepare": jobs.prepare(), "sample": jobs.sample()}


def main() -> None:
    """Runs all parts, prints the table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--faults", type=int, default=20, help="of the part processes")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"--out {given.out} exists: remove it, or name another folder")
    parts = set(given.parts)
    if not FailingDisk.available():
        print("there is no C compiler (cc): no failing disks, the parts disk and jobs are left out")
        parts -= {"disk", "jobs"}
    plans = process_plans(given.faults) if "processes" in parts else ()
    plans += (disk_plan(),) if "disk" in parts else ()
    result = soak(given.out, plans, given.steps, given.seed)
    runs = dict(result["runs"])
    if "jobs" in parts:
        runs |= soak_jobs(given.out)
    write_json(RESULT, result | {"runs": runs})
    for name, run in runs.items():
        faults = run["faults"]
        seconds = [fault["seconds"] for fault in faults]
        lost = sum(fault.get("lost", 0) for fault in faults)
        print(
            f"{name}: {len(faults)} faults survived, {lost} steps lost, {sum(seconds):.0f} s in"
            f" all, {max(seconds):.1f} s at most; {'equal' if run['equal'] else 'NOT equal'}"
        )
    sys.exit(not all(run["equal"] for run in runs.values()))


if __name__ == "__main__":
    main()
