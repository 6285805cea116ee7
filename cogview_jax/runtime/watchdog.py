"""Ends a run that makes no progress, with a message and the stacks of its threads."""

import faulthandler
import os
import sys
import threading
import time

#: Seconds that the message has, before the process is ended without it.
GRACE = 30.0
_STANDARD_ERROR = 2


class Watchdog:
    """Ends this process, with status 1, if nobody calls `beat` for too long.

    A peer that freezes sends no heartbeats, and is noticed by that (`runtime.processes`). This is
    for what heartbeats do not show: a read that never returns, a device that hangs, a peer whose
    training thread waits for something while its other threads live. The message names what the
    process was doing and shows its stacks; the exit of one process ends the others.

    A thread of Python prints the message. It cannot run while a library holds the interpreter lock,
    and then a second timer, a thread of C (`faulthandler`), ends the process a little later; it
    prints the stacks alone. There is one such timer in a process.

        with Watchdog(600, "process 3 on gpu007") as watchdog:
            for batch in batches:
                watchdog.beat(f"step {k}")
    """

    def __init__(self, timeout: float, who: str, grace: float = GRACE):
        """Not watching yet.

        Args:
            timeout: seconds; 0 never ends anything.
            who: begins the message.
            grace: seconds after the timeout until the process is ended without the message.
        """
        self._timeout, self._who, self._grace = timeout, who, grace
        self._lock = threading.Lock()
        self._deadline: float | None = None
        self._doing = ""
        self._closed = threading.Event()

    def beat(self, doing: str) -> None:
        """All is well; `doing` is what begins now and may take up to `timeout` seconds."""
        if not self._timeout:
            return
        with self._lock:
            self._doing = doing
            self._deadline = time.monotonic() + self._timeout
        faulthandler.dump_traceback_later(
            self._timeout + self._grace, exit=True, file=_STANDARD_ERROR
        )

    def rest(self) -> None:
        """Stops watching until the next beat: what begins now may take long."""
        if not self._timeout:
            return
        with self._lock:
            self._deadline = None
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> "Watchdog":
        """Watches from the first beat on."""
        if self._timeout:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        """Watches no longer."""
        self._closed.set()
        self.rest()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout / 4)):
            with self._lock:
                late = self._deadline is not None and time.monotonic() > self._deadline
                doing = self._doing
            if late:
                print(
                    f"error: {self._who} stood still for {self._timeout:g} s (--stall_timeout):"
                    f" {doing}. Its threads were here:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=_STANDARD_ERROR, all_threads=True)
                # Not sys.exit: the thread that hangs would have to take part in it.
                os._exit(1)
