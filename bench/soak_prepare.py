"""Prepares a token store by four processes that are killed, and on a disk that is full.

    python -m bench.soak_prepare [--kills 20] [--records 20000] [--out DIR]

The records are small images in tars; one bit of one image is flipped. One process prepares a store
without disturbance. Then four do so, of which one is killed (SIGKILL) again and again while it
holds a shard, and started again. Then two do so on a disk that has room for half of the store: both
must end with status 1 and one line, and finish the store when the disk is larger. All stores must
equal the first byte for byte, and list the damaged record and no other. Encoding is slowed down,
so that it does not end before the kills.

The full disk needs the right to mount one, and is left out without it. Prints what happened;
exits with 1 if a store differs.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from bench.soak import arguments
from bench.soak_faults import EVERY
from bench.soak_jobs import contents
from bench.supervised import ROOT, Supervised, on_cpu

TARS, SHARDS, BATCHES, PROCESSES = 3, 150, 2, 4
#: Starts the command with an encoder that takes its time.
SLOWED = """
import runpy, sys, time
from cogview_jax.tasks.record_encoder import RecordEncoder
encode = RecordEncoder.encode
RecordEncoder.encode = lambda self, records: (time.sleep({seconds}), encode(self, records))[1]
sys.argv[0] = "prepare"
runpy.run_module("cogview_jax.prepare", run_name="__main__")
"""


class Preparing:
    """The processes that fill one store."""

    def __init__(self, workdir: Path, flags: list[str], said: Path, seconds: float = 0.0):
        """Nothing is started; they write to `said`, and take `seconds` longer for a batch."""
        self.store, self._flags = workdir / "tokens", [*flags, f"--workdir={workdir}"]
        self._program = SLOWED.format(seconds=seconds)
        self._said = said.open("a")
        self.running: dict[int, subprocess.Popen] = {}

    def start(self, processes: int = 1) -> None:
        """Starts so many more."""
        for _ in range(processes):
            command = [sys.executable, "-c", self._program, *self._flags]
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | on_cpu(1), stdout=self._said, stderr=self._said
            )
            self.running[process.pid] = process

    def statuses(self) -> list[int]:
        """The exit statuses, once all have ended."""
        statuses = [process.wait(timeout=900) for process in self.running.values()]
        self.running.clear()
        return statuses

    def written(self) -> int:
        """The number of shards that are whole."""
        return len(list(self.store.glob("tokens-*.json")))

    def writers(self) -> list[int]:
        """The running processes that hold a shard at this moment."""
        found = []
        for lock in self.store.glob(".tokens-*.lock"):
            with contextlib.suppress(OSError, ValueError):  # it is gone, or not yet written
                found.append(json.loads(lock.read_text())["process"])
        return [pid for pid in found if pid in self.running]

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        process = self.running.pop(pid)
        process.send_signal(signal.SIGKILL)
        process.wait()


def make_tars(folder: Path, records: int, rng: np.random.Generator) -> str:
    """Writes the tars; returns the name of the record that is damaged."""
    folder.mkdir(parents=True)
    for number in range(TARS):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for record in range(number, records, TARS):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(png := io.BytesIO(), "png")
                text = f"the image with the number {record}, of {rng.integers(9)} colours"
                for end, data in (("png", png.getvalue()), ("txt", text.encode())):
                    entry = tarfile.TarInfo(f"{record:06}.{end}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    path = folder / "1.tar"
    with tarfile.open(path) as tar:
        entry = [entry for entry in tar if entry.name.endswith(".png")][7]
    data = bytearray(path.read_bytes())
    data[entry.offset_data + entry.size // 2] ^= 4
    path.write_bytes(data)
    return f"1.tar/{entry.name.removesuffix('.png')}"


def settings(folder: Path, records: int) -> list[str]:
    """The flags of all commands: SHARDS shards of BATCHES batches."""
    shard = -(-records // SHARDS)
    values = {
        "data.source.kind": "webdataset",
        "data.source.path": folder / "tars" / "*.tar",
        "data.shard_size": shard,
        "data.encode_batch": -(-shard // BATCHES),
        "data.image_tokenizer": folder / "codec" / "bundle",
        "data.text.pieces": 300,
        "vocabulary.codes": 16,
        "vocabulary.text": 300,
        "layout.text_length": 48,
        "layout.grid": 4,
        "train.sample_every": 0,
    }
    return ["--config=configs/demo.py", *(f"--config.{name}={x}" for name, x in values.items())]


def with_kills(work: Preparing, kills: int, rng: random.Random) -> None:
    """Kills a writer each time a further share of the shards is whole, and starts another."""
    work.start(PROCESSES)
    for number in range(kills):
        due = SHARDS * number // (kills + 1)
        while work.written() < due:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        while not (writers := work.writers()):
            time.sleep(0.01)
        work.kill(rng.choice(writers))
        print(f"  kill {number + 1} of {kills}: {work.written()} of {SHARDS} shards", flush=True)
        work.start()


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """Mounts a disk of so many bytes at `place`; whether that could be done."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(place)], check=True)


def on_a_full_disk(folder: Path, flags: list[str], size: int) -> dict[str, bytes] | None:
    """The store of two processes whose disk is full halfway; None where no disk can be mounted."""
    place = folder / "disk"
    with small_disk(place, size // 2) as mounted:
        if not mounted:
            print("  there is no right to mount a small disk: left out")
            return None
        work = Preparing(place / "run", flags, folder / "disk.txt")
        work.start(2)
        statuses = work.statuses()
        said = (folder / "disk.txt").read_text().splitlines()
        errors = [line for line in said if line.startswith("error: ")]
        print(
            f"  full: statuses {statuses}, {work.written()} shards whole; {errors[:1]}", flush=True
        )
        if statuses != [1, 1] or not all("No space left on device" in line for line in errors):
            raise AssertionError("\n".join(said))
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(place)], check=True)
        work.start(2)
        if any(statuses := work.statuses()):
            raise AssertionError(f"statuses {statuses} on a larger disk")
        return contents(work.store)


def main() -> None:
    """Makes all stores, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak_prepare")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"--out {given.out} exists: remove it, or name another folder")
    if given.records < 10 * SHARDS:
        parser.error(f"--records {given.records}: expected at least {10 * SHARDS}")
    folder, rng = given.out.absolute(), random.Random(given.seed)
    damaged = make_tars(folder / "tars", given.records, np.random.default_rng(given.seed))
    codec = Supervised(folder / "codec", arguments(folder, EVERY, 1, 0))
    codec.start((1, 2))
    codec.finish()
    flags = settings(folder, given.records)

    alone = Preparing(folder / "alone", flags, folder / "alone.txt")
    alone.start()
    alone.statuses()
    expected = contents(alone.store)
    listed = [json.loads(x)["key"] for x in expected["skipped.jsonl"].decode().splitlines()]
    examples = json.loads(expected["manifest.json"])["examples"]
    print(f"one process: {examples} of {given.records} examples; listed {listed}", flush=True)

    print(f"{PROCESSES} processes, {given.kills} kills", flush=True)
    killed = Preparing(folder / "killed", flags, folder / "killed.txt", seconds=0.3)
    with_kills(killed, given.kills, rng)
    statuses = killed.statuses()
    print(f"  statuses of the last {PROCESSES}: {statuses}", flush=True)

    print("two processes on a disk that is full", flush=True)
    on_disk = on_a_full_disk(folder, flags, sum(map(len, expected.values())))
    results = {
        "the damaged record is listed, and no other": listed == [damaged],
        "all others are there": examples == given.records - 1,
        "killed processes": statuses == [0] * PROCESSES and contents(killed.store) == expected,
        "a full disk": on_disk is None or on_disk == expected,
    }
    for name, equal in results.items():
        print(f"{name}: {'equal' if equal else 'NOT equal'}")
    sys.exit(not all(results.values()))


if __name__ == "__main__":
    main()
