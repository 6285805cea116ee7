"""Prepares a token store and samples on a disk that fills up or fails again and again."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bench.failing_disk import BROKEN, FULL, FailingDisk
from bench.supervised import ROOT, on_cpu

IMAGES, GARBAGE, BAD = 40, "7.png", "23.png"
#: Parts of the paths of the files that are written, in that order.
STORE = ("tokenizers/", "plan.json", "tokens-00000.array_record", "tokens-00001.json")
AT_LAST = ("skipped.jsonl", "manifest.json")
OUTPUT = ("00000_002.png", "/images/", "grid.png", "samples.jsonl")


@dataclasses.dataclass
class Jobs:
    """Commands on a small bundle and the disk that they write to.

    Attributes:
        folder: the folder for all files.
        codec: a bundle with a codebook of 16, whose images of 16 pixels have 4 x 4 codes.
    """

    folder: Path
    codec: Path

    def __post_init__(self):
        self._disk = FailingDisk(self.folder / "failing")
        self._images = self.folder / "images"
        self._images.mkdir()
        self._said = self.folder / "said.txt"
        rng = np.random.default_rng(0)
        for number in range(IMAGES):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(self._images / f"{number}.png")
            caption = f"the image with the number {number}, of {rng.integers(9)} colours"
            (self._images / f"{number}.txt").write_text(caption)
        (self._images / GARBAGE).write_bytes(b"no image")

    def prepare(self) -> dict:
        """Prepares a store, starting again after each fault; it must equal that of one start."""
        self._succeeds("prepare", *self._experiment("unbroken"))
        job = ("prepare", *self._experiment("broken"))
        met = [self._full(text, *job) for text in STORE]
        met.append(self._stays_broken(BAD, *job))
        met += [self._full(text, *job) for text in AT_LAST]
        met.append(self._broken_for_a_second(BAD, *self._experiment("stuttering")))
        self._succeeds(*job)
        stores = [self.folder / name / "tokens" for name in ("unbroken", "broken", "stuttering")]
        whole, *others = map(contents, stores)
        skipped = json.loads(whole["manifest.json"])["skipped"]
        equal = [other == whole for other in others]
        return {"faults": met, "equal": all(equal) and skipped == 1}

    def sample(self) -> dict:
        """Samples, starting again after each fault; the images must equal those of one start."""
        self._succeeds("train", *self._experiment("unbroken"))
        bundle = f"--bundle={self.folder / 'unbroken' / 'bundle'}"
        job = ("sample", bundle, "--prompt=an image", "--num_images=6", "--batch_size=2")
        self._succeeds(*job, f"--out={self.folder / 'whole'}")
        job = (*job, f"--out={self.folder / 'out'}")
        met = [self._full(text, *job) for text in OUTPUT]
        met.append(self._stays_broken("unbroken/bundle/", *job))
        self._succeeds(*job)
        equal = contents(self.folder / "out") == contents(self.folder / "whole")
        return {"faults": met, "equal": equal}

    def _experiment(self, workdir: str) -> list[str]:
        settings = {
            "data.source.kind": "folder",
            "data.source.path": self._images,
            "data.shard_size": 8,
            "data.encode_batch": 8,
            "data.image_tokenizer": self.codec,
            "data.text.pieces": 300,
            "vocabulary.codes": 16,
            "vocabulary.text": 300,
            "layout.text_length": 16,
            "layout.grid": 4,
            "model.layers": 2,
            "model.width": 32,
            "train.steps": 2,
            "train.global_batch": 8,
            "train.sample_every": 0,
        }
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        return ["--config=configs/demo.py", f"--workdir={self.folder / workdir}", *flags]

    def _full(self, text: str, *job: str) -> dict:
        """The disk is full for paths with `text`; the job ends with one line and status 1."""
        with self._timed(f"{job[0]}: full at {text}") as met, self._disk.fails(FULL, text):
            self._fails_with("No space left on device", self._start(*job))
        return met

    def _stays_broken(self, text: str, *job: str) -> dict:
        """Paths with `text` cannot be read or written; the job ends with one line and status 1."""
        with self._timed(f"{job[0]}: EIO at {text}") as met, self._disk.fails(BROKEN, text):
            self._fails_with("Input/output error", self._start(*job))
        return met

    def _broken_for_a_second(self, text: str, *experiment: str) -> dict:
        """An image cannot be read for a second. No record may be missing."""
        with self._timed(f"prepare: a second of EIO at {text}") as met:
            with self._disk.fails(BROKEN, text):
                process = self._start("prepare", *experiment)
                self._wait_for("trying again", process)
                time.sleep(1.0)
            self._ends(process, 0)
        return met

    @contextlib.contextmanager
    def _timed(self, kind: str):
        began, met = time.monotonic(), {"kind": kind}
        yield met
        met["seconds"] = time.monotonic() - began
        print(f"  {kind:50} {met['seconds']:5.1f} s", flush=True)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"cogview_jax.{name}", *arguments]
        environ = on_cpu(1) | self._disk.environ
        with self._said.open("w") as said:
            return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=said, stderr=said)

    def _succeeds(self, *job: str) -> None:
        self._ends(self._start(*job), 0)

    def _fails_with(self, reason: str, process: subprocess.Popen) -> None:
        self._ends(process, 1)
        said = self._said.read_text()
        lines = said.splitlines()
        errors = [line for line in lines if line.startswith("error: ") and reason in line]
        if len(errors) != 1 or lines[-1] != errors[0] or "Traceback" in said:
            raise AssertionError(f"expected one line, {reason}:\n{said}")

    def _ends(self, process: subprocess.Popen, status: int) -> None:
        if process.wait(timeout=300) != status:
            raise AssertionError(
                f"{process.args[2]} ended with {process.returncode}, expected {status}:\n"
                + self._said.read_text()
            )

    def _wait_for(self, words: str, process: subprocess.Popen) -> None:
        while words not in self._said.read_text():
            if process.poll() is not None:
                raise AssertionError(f"it never said {words}:\n{self._said.read_text()}")
            time.sleep(0.01)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file below a folder, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
