"""A training run under the supervisor of launch/, controlled from outside."""

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
    """A training run in a workdir under the supervisor, which can be stopped and started again."""

    def __init__(self, workdir: Path, arguments: list[str], environ: Mapping[str, str] = {}):
        """`arguments` of the command lack --workdir; `environ` is added to the environment."""
        self.workdir, self._environ = workdir, environ
        self._train = [sys.executable, "-m", "cogview_jax.train", f"--workdir={workdir}"]
        self._train += [f"--heartbeat_timeout={HEARTBEAT}", "--shutdown_timeout=20", *arguments]
        self.output: list[str] = []
        self._process: subprocess.Popen | None = None

    def start(self, topology: tuple[int, int]) -> None:
        """Starts the supervisor with so many processes and devices of each."""
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
        """Starts the same run in the same workdir once more, as one process with pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._train, cwd=ROOT, env=on_cpu(devices), stdout=pipe, stderr=pipe, text=True
        )

    def stop(self) -> None:
        """Asks the supervisor to stop; the state must be saved and the status must say so."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(timeout=120)
        if status != PREEMPTED and not self.finished:
            raise AssertionError(f"stopping gave status {status}:\n{self.tail()}")

    def finish(self, timeout: float = 3600) -> None:
        """Waits for the end of the run, which must succeed."""
        status = self._process.wait(timeout)
        if status:
            raise AssertionError(f"the run ended with status {status}:\n{self.tail()}")

    def kill(self) -> None:
        """Kills the run, whatever its state."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def finished(self) -> bool:
        """Returns whether the bundle exists."""
        return (self.workdir / "bundle").is_dir()

    @property
    def step(self) -> int:
        """Returns the last step that was logged."""
        lines = self._logged()
        return json.loads(lines[-1])["step"] if lines else 0

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Returns every logged step and its loss."""
        lines = map(json.loads, self._logged())
        return [(line["step"], line["loss"]) for line in lines]

    @property
    def saved(self) -> list[int]:
        """Returns the steps of the complete checkpoints."""
        folder = self.workdir / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())

    def said(self, words: str, since: int) -> int:
        """Returns how many lines of output after line `since` contain `words`."""
        return sum(words in line for line in self.output[since:])

    def children(self) -> list[int]:
        """Returns the ids of the training processes."""
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
        """Returns when `ready()` is true; the supervisor must not end before."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self._process.poll() is not None:
                raise AssertionError(f"it ended while waiting for {what}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout:.0f} s for {what}:\n{self.tail()}")
            time.sleep(0.01)

    def resumed(self, since: int) -> list[int]:
        """Returns the steps from which the starts after line `since` of the output continued."""
        found = (re.search(r"continues after step (\d+) of", line) for line in self.output[since:])
        return [int(match[1]) for match in found if match]

    def tail(self) -> str:
        """Returns the last lines of output."""
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
    """Returns the environment of a program that sees so many devices.

    There may be more devices than cores, since the programs are small and are cached.
    """
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
