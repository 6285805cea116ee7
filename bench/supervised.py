"""A training run under the supervisor of launch/, watched from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cogview_jax.runtime.processes import PREEMPTED

ROOT = Path(__file__).resolve().parents[1]
HEARTBEAT = 6


class Supervised:
    """A training run in a workdir, under the supervisor; `start` it again after it has stopped."""

    def __init__(self, workdir: Path, arguments: list[str], environ: Mapping[str, str] = {}):
        """The command's `arguments` without --workdir; `environ` is added to the environment."""
        self.workdir, self._environ = workdir, environ
        self._train = [sys.executable, "-m", "cogview_jax.train", f"--workdir={workdir}"]
        self._train += [f"--heartbeat_timeout={HEARTBEAT}", "--shutdown_timeout=20", *arguments]
        self.output: list[str] = []
        self._process: subprocess.Popen | None = None

    def start(self, topology: tuple[int, int]) -> None:
        """Starts the supervisor, with so many processes of so many devices each."""
        processes, devices = topology
        command = [sys.executable, str(ROOT / "launch" / "local.py"), "-n", str(processes)]
        command += ["--max_restarts", "100", "--backoff", "0.1", "--grace", "60", "--"]
        self._process = subprocess.Popen(
            [*command, *self._train],
            cwd=ROOT,
            env=on_cpu(devices) | self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def second(self, devices: int) -> subprocess.Popen:
        """The same run in the same workdir once more, as one process; its output is in pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._train, cwd=ROOT, env=on_cpu(devices), stdout=pipe, stderr=pipe, text=True
        )

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

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Every logged step and its loss."""
        lines = map(json.loads, self._logged())
        return [(line["step"], line["loss"]) for line in lines]

    @property
    def saved(self) -> list[int]:
        """The steps of the checkpoints that are whole."""
        folder = self.workdir / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())

    def said(self, words: str, since: int) -> int:
        """How many lines of output after line `since` hold `words`."""
        return sum(words in line for line in self.output[since:])

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


def on_cpu(devices: int) -> dict[str, str]:
    """The environment of a program that sees so many devices.

    They are more than there are cores: the programs are small, and the cache has them all.
    """
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
