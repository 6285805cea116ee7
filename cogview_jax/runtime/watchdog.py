"""A run that stands still is ended, with a message that says where."""

import faulthandler
import os
import sys
import threading
import time


class Watchdog:
    """Ends this process if nobody calls `beat` for too long.

    A peer that freezes sends no heartbeats, and is noticed by that (`runtime.distributed`). This is
    for what heartbeats do not show: a read that never returns, a device that hangs, a peer whose
    training thread waits for something while its other threads live. The message names what the
    process was doing and shows its stacks; the exit of one process ends the others.

        with Watchdog(600, "process 3 on gpu007") as watchdog:
            for batch in batches:
                watchdog.beat(f"step {k}")
    """

    def __init__(self, timeout: float, who: str, status: int = 1):
        """Not watching yet.

        Args:
            timeout: seconds; 0 never ends anything.
            who: begins the message.
            status: the exit status.
        """
        self._timeout, self._who, self._status = timeout, who, status
        self._lock = threading.Lock()
        self._deadline: float | None = None
        self._doing = ""
        self._closed = threading.Event()

    def beat(self, doing: str) -> None:
        """All is well; `doing` is what begins now and may take up to `timeout` seconds."""
        with self._lock:
            self._doing = doing
            self._deadline = time.monotonic() + self._timeout if self._timeout else None

    def rest(self) -> None:
        """Stops watching until the next beat: what begins now may take long."""
        with self._lock:
            self._deadline = None

    def __enter__(self) -> "Watchdog":
        """Watches from the first beat on."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        """Watches no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout / 4 or 1.0)):
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
                faulthandler.dump_traceback(all_threads=True)
                # Not sys.exit: the thread that hangs would have to take part in it.
                os._exit(self._status)
