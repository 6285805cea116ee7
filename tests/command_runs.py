"""Commands run as users run them, and a small chain of runs from images to a bundle."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.shapes.scenes import caption, drawing

STEPS, PICTURES = 12, 32


class Command:
    """A program that runs as a process, forked by `warm_start.py`.

    `program` is what stands behind "python" to start it: "-m" and a module, or a file, and
    arguments. Its standard output and error go to one file if they are `together`.
    """

    _lock = threading.Lock()
    _warm: subprocess.Popen | None = None
    _environment: dict[str, str] | None = None

    def __init__(
        self,
        root: Path,
        program: Sequence[object],
        environ: Mapping[str, str] = {},
        together: bool = False,
    ):
        """Starts it in the folder `root`, with `environ` on top of the environment."""
        self.returncode: int | None = None
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "stdout").touch()
        if together:
            (self.folder / "stderr").hardlink_to(self.folder / "stdout")
        else:
            (self.folder / "stderr").touch()
        command = {"program": [*map(str, program)], "place": str(root), "environment": {**environ}}
        (self.folder / "command.json").write_text(json.dumps(command))
        with Command._lock:
            if Command._warm is None or Command._environment != environment():
                Command.end()
                Command._environment, pipe = environment(), subprocess.PIPE
                start = [sys.executable, str(root / "tests" / "warm_start.py")]
                Command._warm = subprocess.Popen(start, cwd=root, stdin=pipe, bufsize=0)
            Command._warm.stdin.write(f"{self.folder}\n".encode())
        self.pid = int(self._read("pid"))

    @classmethod
    def end(cls) -> None:
        """Ends the process that forks, once the commands have ended."""
        if cls._warm is not None:
            cls._warm.stdin.close()
            cls._warm.wait()
            cls._warm = None

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        if self.returncode is None and (self.folder / "status").exists():
            self.returncode = int(self._read("status"))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 600) -> int:
        """The exit status, once it has ended; `subprocess.TimeoutExpired` if that takes longer."""
        self.returncode = int(self._read("status", timeout))
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Standard output and error, once it has ended."""
        self.wait()
        output = [(self.folder / name).read_text() for name in ("stdout", "stderr")]
        shutil.rmtree(self.folder)
        return output[0], output[1]

    def _read(self, name: str, timeout: float = 600) -> str:
        deadline = time.monotonic() + timeout
        while not (self.folder / name).exists():
            assert Command._warm.poll() is None, "the process that forks has ended"
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.folder), timeout)
            time.sleep(0.02)
        return (self.folder / name).read_text()


def environment() -> dict[str, str]:
    """What commands see of the environment."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def start(root: Path, command: str, *arguments: str) -> Command:
    """The command, running in the repository."""
    return Command(root, ["-m", f"cogview_jax.{command}", *arguments])


def call(root: Path, command: str, *arguments: str) -> subprocess.CompletedProcess:
    """The command, run to its end."""
    process = start(root, command, *arguments)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess([command, *arguments], process.returncode, stdout, stderr)


def kill_when(ready: Callable[[], bool], process: Command) -> None:
    """SIGKILL as soon as `ready()`; the process must not have ended by itself."""
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it never came to where it was to be killed"
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -9


def write_drawing(path: Path, number: int) -> list[str]:
    """Writes a drawing; returns its captions."""
    scene, image = drawing(0, "train", number, 16)
    Image.fromarray(image).save(path, "png")
    return [caption(scene, "en"), caption(scene, "zh")]


@dataclasses.dataclass(frozen=True)
class Chain:
    """A codec, a token store, and a transformer, each made when it is first asked for."""

    root: Path
    folder: Path

    def train_codec(self, name: str) -> tuple[str, ...]:
        """Arguments of the first run, with its workdir called `name`."""
        return (
            *("--config=configs/demo_codec.py", f"--workdir={self.folder / name}"),
            *(f"--config.data.source.path={self.folder / 'drawings'}", *TRAINING),
            *("--config.data.source.size=16", "--config.data.source.train_count=64"),
            *("--config.model.image_size=16", "--config.model.channels=(8,16)"),
            *("--config.model.codebook=16", "--config.model.code_width=8"),
            "--config.model.residual_blocks=0",
        )

    def transformer(self, name: str) -> tuple[str, ...]:
        """Arguments of `prepare` and of the second run, with their workdir called `name`."""
        return (
            *("--config=configs/demo.py", f"--workdir={self.folder / name}", *TRAINING),
            *("--config.data.source.kind=folder", f"--config.data.source.path={self.images}"),
            *("--config.data.shard_size=8", f"--config.data.image_tokenizer={self.codec}/bundle"),
            *("--config.vocabulary.codes=16", "--config.vocabulary.text=400"),
            *("--config.data.text.pieces=400", "--config.layout.text_length=40"),
            *("--config.layout.grid=4", "--config.model.layers=2", "--config.model.width=32"),
        )

    def succeed(self, command: str, *arguments: str) -> subprocess.CompletedProcess:
        """Runs a command that must not fail."""
        result = call(self.root, command, *arguments)
        assert result.returncode == 0, result.stderr
        return result

    @functools.cached_property
    def images(self) -> Path:
        """A folder of captioned images."""
        folder = self.folder / "images"
        folder.mkdir()
        files = [f"{number}.png" for number in range(PICTURES)]
        texts = [write_drawing(folder / file, number) for number, file in enumerate(files)]
        lines = [json.dumps({"file": f, "captions": t}) for f, t in zip(files, texts, strict=True)]
        (folder / "captions.jsonl").write_text("\n".join(lines))
        return folder

    @functools.cached_property
    def codec(self) -> Path:
        """The workdir of a finished codec."""
        self.succeed("train", *self.train_codec("codec"))
        return self.folder / "codec"

    @functools.cached_property
    def store(self) -> Path:
        """The token store of `run`."""
        self.succeed("prepare", *self.transformer("run"))
        return self.folder / "run" / "tokens"

    @functools.cached_property
    def run(self) -> Path:
        """The workdir of a finished transformer."""
        assert self.store.is_dir()
        self.succeed("train", *self.transformer("run"))
        return self.folder / "run"


TRAINING = (
    *(f"--config.train.steps={STEPS}", "--config.train.global_batch=8"),
    *("--config.train.log_every=2", "--config.train.checkpoint_every=4"),
    *("--config.train.sample_every=6", "--config.optimizer.muon_lr=0"),
)


def retold(chain: Chain, path: Path, task: str) -> str:
    """The chain's weights, told to be of another task: what they do is nonsense, but they do it."""
    base = Bundle(chain.run / "bundle")
    part = base.transformer()
    part = dataclasses.replace(part, layout=dataclasses.replace(part.layout, task=task))
    write_bundle(path, codec=base, text=base.text(), transformer=part)
    return str(path)
