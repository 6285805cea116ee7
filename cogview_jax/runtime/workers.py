"""Worker processes of this machine, which compute a function of many arguments.

A worker is a program of its own and no copy of this one, which may have threads and devices, and it
does not run the main script again. It ends when the pipe from this process closes, so a run that is
killed leaves none behind.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cogview_jax.runtime.errors import SystemFault

A = TypeVar("A")
R = TypeVar("R")


def cores() -> int:
    """The number of processor cores that this process may use; all where the system tells none."""
    own = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(own(0))


def computed(
    function: Callable[[A], R], arguments: Sequence[A], processes: int, what: str
) -> Iterator[R]:
    """Yields `function(argument)` for all arguments, in their order.

    Args:
        function: of the top level of a module. Arguments and results are pickled.
        arguments: what it is called with.
        processes: how many workers there are at most. One computes in this process instead.
        what: is computed, for messages.

    Raises:
        SystemFault: a worker was killed. What the function raises is raised as it is.
    """
    if processes <= 1 or len(arguments) <= 1:
        yield from map(function, arguments)
        return
    own, workers = threading.local(), []

    def ask(argument: A) -> R:
        if not hasattr(own, "worker"):
            own.worker = _Worker(what)
            workers.append(own.worker)
        return own.worker.ask(function, argument)

    threads = ThreadPoolExecutor(min(processes, len(arguments)))
    try:
        yield from threads.map(ask, arguments)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()
        threads.shutdown()


class _Worker:
    """A process that runs `serve`."""

    def __init__(self, what: str):
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)
        self._what = what
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )

    def ask(self, function: Callable, argument: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((function, argument), self._process.stdin)
            self._process.stdin.flush()
            returned, value = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            status = self._process.wait()
            raise SystemFault(
                f"{self._what}: a worker process ended (status {status}); was it killed, or is"
                " memory short?"
            ) from None
        if not returned:
            raise value
        return value

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Computes what comes through standard input until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all; the parent acts.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What is printed is no answer.
    # It goes out line by line: a worker ends by a signal, and lines of two workers stay whole.
    sys.stdout = os.fdopen(sys.stdout.fileno(), "w", buffering=1, closefd=False)
    while True:
        try:
            function, argument = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (True, function(argument))
        except Exception as error:
            answer = (False, error)
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # Who asked is gone.
            os._exit(1)
