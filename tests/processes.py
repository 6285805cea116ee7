"""Real processes that together are one run, on one machine with fake devices."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cogview_jax.runtime.leftovers import temporary_path
from command_runs import Command

#: What Gloo says of its connections. Its threads write word by word, into each other's lines.
CHATTER = re.compile(
    r"(\[Gloo\] Rank |is connected to|peer ranks\.|Expected number of connected peer ranks is :"
    r"|\d+| |\n)+"
)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Processes:
    """n copies of a Python command that find each other, each with some CPU devices.

    Use it in a `with` block: what is still running at its end is killed.
    """

    def __init__(self, root: Path, command: Sequence[object], n: int, devices: int):
        """Starts them in the folder `root`; standard output and error of each go to one file."""
        port, self.all = free_port(), []
        for i in range(n):
            place = {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(n),
                "JAX_PROCESS_ID": str(i),
            }
            environ = {
                "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}",
                "JAX_NUM_CPU_DEVICES": str(devices),
            }
            environ |= place if n > 1 else {}
            self.all.append(Command(root, command, environ, together=True))

    def __enter__(self) -> "Processes":
        """Kills what is left after the block."""
        return self

    def __exit__(self, *exception) -> None:
        """Kills what is left."""
        for process in self.all:
            process.kill()
            process.communicate()

    def output(self, i: int) -> str:
        """What process i has written so far, without the chatter of Gloo."""
        text = (self.all[i].folder / "stdout").read_text()
        return "".join(line for line in text.splitlines(True) if not CHATTER.fullmatch(line))

    def statuses(self, timeout: float = 600) -> list[int]:
        """The exit statuses, once all have ended."""
        deadline = time.monotonic() + timeout
        for i, process in enumerate(self.all):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"process {i} still runs:\n{self.output(i)}") from None
        return [process.returncode for process in self.all]

    def succeed(self, timeout: float = 600) -> None:
        """All must end with 0."""
        statuses = self.statuses(timeout)
        assert not any(statuses), (statuses, [self.output(i) for i in range(len(self.all))])

    def wait_until(self, ready: Callable[[], bool], timeout: float = 600) -> None:
        """Returns when `ready()`; none of the processes may have ended by then."""
        deadline = time.monotonic() + timeout
        while not ready():
            for i, process in enumerate(self.all):
                assert process.poll() is None, self.output(i)
            assert time.monotonic() < deadline, [self.output(i) for i in range(len(self.all))]
            time.sleep(0.02)


def left_by_the_dead(path: Path) -> Path:
    """The temporary name beside `path` that a process of this machine had used before it died."""
    name, pid = temporary_path(path).name, os.getpid()
    return path.with_name(re.sub(rf"-{pid}-\d+-", f"-{pid}-1-", name))
