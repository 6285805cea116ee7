#!/usr/bin/env python3
"""Runs a command as several processes of one job, and runs it again when it fails.

    launch/local.py -n 4 -- python -m cogview_jax.train --config ... --workdir ...

The processes find each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. When
one fails the others are ended, and after a pause all are started again: a training run then goes on
from its last checkpoint. On several machines one supervisor runs on each, with the same
--coordinator; a failure on one machine reaches the others because their processes lose a peer.

Exit status: 0 when all processes succeed; 75 when the supervisor was asked to stop (SIGTERM,
SIGINT) and the processes have saved their state; 2 when a process refuses its input, which no
repetition mends; 1 when the restarts are used up or a process had to be killed. Only the standard
library is used, so that it starts anywhere.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

PREEMPTED, BAD_INPUT = 75, 2
#: Seconds that the others have, once one process has failed. They wait in a collective for it, and
#: will not end by themselves before jax's heartbeats tell them; but a process that fails with its
#: own message (the cause, perhaps) should have the time to print it.
LAST_WORDS = 1.0
LONGEST_PAUSE = 300.0
#: What Gloo prints of every connection, sometimes in pieces.
CHATTER = (b"[Gloo]", b" peer ranks")
_PR_SET_PDEATHSIG = 1


class Child:
    """One process of an attempt."""

    def __init__(
        self, number: int, command: Sequence[str], environ: Mapping[str, str], prefix: bool
    ):
        """Starts it in a process group of its own; its output goes through `_pass_on`."""
        self.number, self.began, self.ended = number, time.monotonic(), None
        self._prefix = f"[{number}] ".encode() if prefix else b""
        supervisor = os.getpid()
        self.process = subprocess.Popen(
            command,
            env=dict(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: _die_with(supervisor),
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs; -N after signal N."""
        status = self.process.poll()
        if status is not None and self.ended is None:
            self.ended = time.monotonic()
        return status

    def signal(self, number: int) -> None:
        """To the process alone: what it has started is its own to end."""
        if self.status is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Ends it and all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def drain(self) -> None:
        """Waits until what it printed is passed on."""
        self._reader.join(timeout=5)

    def describe(self) -> str:
        """How it ended, in words."""
        status = self.status
        after = f"after {(self.ended or time.monotonic()) - self.began:.0f} s"
        if status is None:
            return f"process {self.number} still ran {after}"
        if status < 0:
            try:
                name = signal.Signals(-status).name
            except ValueError:
                name = f"signal {-status}"
            lost = ": it lost a peer, or crashed" * (-status == signal.SIGABRT)
            return f"process {self.number} was killed by {name} {after}{lost}"
        meaning = {0: "done", PREEMPTED: "asked to stop", BAD_INPUT: "bad input"}
        return (
            f"process {self.number} exited with {status} ({meaning.get(status, 'failure')}) {after}"
        )

    def _pass_on(self) -> None:
        """Line by line, so that no two processes share a line."""
        for line in self.process.stdout:
            if line.strip() and not any(words in line for words in CHATTER):
                if not line.endswith(b"\n"):
                    line += b"\n"
                sys.stdout.buffer.write(self._prefix + line)
                sys.stdout.buffer.flush()


class Supervisor:
    """Attempts, one after the other, until one succeeds or it is no use."""

    def __init__(self, options: argparse.Namespace):
        """options: what the command line says."""
        self._options = options
        self._asked = self._hurry = False
        self._children: list[Child] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def run(self) -> int:
        """The exit status of the supervisor."""
        options, failures, attempts = self._options, 0, 0
        while True:
            attempts += 1
            began = time.monotonic()
            status, cause = self._attempt()
            if status == 0:
                return 0
            if self._asked:
                log(f"asked to stop: {cause}")
                return status
            if status == BAD_INPUT:
                log(f"{cause}; not started again")
                return BAD_INPUT
            if time.monotonic() - began >= options.healthy:
                failures = 0  # it had gone well for long
            failures += 1
            if failures > options.max_restarts:
                log(f"{cause}; given up after {attempts} attempts (--max_restarts)")
                return 1
            # Somebody asked one process to stop, and all have saved: nothing is wrong here.
            pause = 0.0 if status == PREEMPTED else options.backoff * 2 ** (failures - 1)
            pause = min(pause, LONGEST_PAUSE)
            log(f"{cause}; restart {failures} of {options.max_restarts} in {pause:.1f} s")
            self._wait(pause)
            if self._asked:
                log("asked to stop between two attempts")
                return PREEMPTED

    def _attempt(self) -> tuple[int, str]:
        """One start of all processes, to the end of the last: a status, and what decided it."""
        options = self._options
        coordinator = options.coordinator or f"localhost:{free_port()}"
        total, first = options.nodes * options.n, options.node_rank * options.n
        for local in range(options.n):
            environ = dict(os.environ)
            if not options.detect:
                environ |= {
                    "JAX_COORDINATOR_ADDRESS": coordinator,
                    "JAX_NUM_PROCESSES": str(total),
                    "JAX_PROCESS_ID": str(first + local),
                }
            if options.gpus_per_process:
                start = local * options.gpus_per_process
                own = range(start, start + options.gpus_per_process)
                environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
            self._children.append(Child(first + local, options.command, environ, prefix=total > 1))
        try:
            return self._watch()
        finally:
            for child in self._children:
                child.kill()
                child.drain()
            self._children.clear()

    def _watch(self) -> tuple[int, str]:
        deadline = None  # by which they must have ended
        failed = None
        while True:
            ended = [child for child in self._children if child.status is not None]
            bad = [child for child in ended if child.status not in (0, PREEMPTED)]
            if failed is None and bad:
                failed = self._first_cause(bad)
                others = len(self._children) - len(ended)
                log(failed.describe() + ("; ending the others" if others else ""))
                deadline = min(deadline or float("inf"), time.monotonic() + LAST_WORDS)
            if len(ended) == len(self._children):
                break
            if self._asked and deadline is None:
                for child in self._children:
                    child.signal(signal.SIGTERM)
                deadline = time.monotonic() + self._options.grace
            if self._hurry or (deadline is not None and time.monotonic() > deadline):
                running = [child for child in self._children if child.status is None]
                if failed is None:
                    for child in running:
                        child.kill()
                    names = ", ".join(str(child.number) for child in running)
                    return 1, f"process {names} did not stop within {self._options.grace:.0f} s"
                break
            time.sleep(0.02)
        statuses = {child.status for child in self._children}
        if self._asked and self._children[0].status == PREEMPTED:
            # The state is saved: what happens to a process while all leave loses nothing.
            return PREEMPTED, "all processes were asked to stop and have saved"
        if failed is None:
            if statuses == {0}:
                return 0, "all processes are done"
            return PREEMPTED, "all processes were asked to stop and have saved"
        late = [c for c in self._children if c.status not in (None, 0, PREEMPTED)]
        failed = self._first_cause(late)
        return (BAD_INPUT if failed.status == BAD_INPUT else 1), failed.describe()

    @staticmethod
    def _first_cause(bad: Sequence[Child]) -> Child:
        """Of processes that failed together, the one that is likely why.

        Who lost a peer aborts; who refuses its input or fails for itself says so.
        """
        order = {BAD_INPUT: 0, 1: 1, -signal.SIGABRT: 3}
        return min(bad, key=lambda child: order.get(child.status, 2))

    def _ask(self, number: int, frame: object) -> None:
        self._hurry = self._asked and number == signal.SIGINT
        self._asked = True

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._asked and time.monotonic() < until:
            time.sleep(min(0.05, max(0.0, until - time.monotonic())))


def _die_with(supervisor: int) -> None:
    """In the child: whoever kills the supervisor ends the child too (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died before the line above
            os._exit(1)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def log(line: str) -> None:
    """One line on standard error."""
    sys.stdout.flush()
    print(f"launch: {line}", file=sys.stderr, flush=True)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-n", type=int, default=1, help="processes on this machine (default: 1)")
    parser.add_argument("--nodes", type=int, default=1, help="machines of the job (default: 1)")
    parser.add_argument("--node_rank", type=int, default=0, help="which machine this is, from 0")
    parser.add_argument(
        "--coordinator",
        default="",
        metavar="HOST:PORT",
        help="where process 0 listens; needed with several machines, else a free port is found",
    )
    parser.add_argument(
        "--detect",
        action="store_true",
        help="set no JAX_* variables: the processes find each other by the cluster (TPU pods)",
    )
    parser.add_argument(
        "--gpus_per_process",
        type=int,
        default=0,
        metavar="N",
        help="give each process N of the machine's GPUs (default: all see all)",
    )
    parser.add_argument(
        "--max_restarts", type=int, default=10, metavar="N", help="failures in a row (default: 10)"
    )
    parser.add_argument(
        "--backoff",
        type=float,
        default=2.0,
        metavar="S",
        help=f"seconds before the first restart, doubled with each up to {LONGEST_PAUSE:.0f}"
        " (default: 2)",
    )
    parser.add_argument(
        "--healthy",
        type=float,
        default=600.0,
        metavar="S",
        help="an attempt that ran so many seconds makes failures count from 0 again (default: 600)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=90.0,
        metavar="S",
        help="seconds that processes have to save and stop when asked to (default: 90)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: what to run")
    options = parser.parse_args(arguments)
    options.command = options.command[options.command[:1] == ["--"] :]
    if not options.command:
        parser.error("no command is given: launch/local.py -n 4 -- python -m cogview_jax.train ...")
    if min(options.n, options.nodes) < 1 or not 0 <= options.node_rank < options.nodes:
        parser.error(
            f"-n {options.n} --nodes {options.nodes} --node_rank {options.node_rank}: expected at"
            " least one process and machine, and a rank below --nodes"
        )
    if options.nodes > 1 and not options.coordinator and not options.detect:
        parser.error("--nodes above 1 needs --coordinator HOST:PORT, the same on every machine")
    if min(options.max_restarts, options.backoff, options.healthy, options.grace) < 0:
        parser.error("--max_restarts, --backoff, --healthy and --grace are 0 or more")
    return options


if __name__ == "__main__":
    sys.exit(Supervisor(read_options(sys.argv[1:])).run())
