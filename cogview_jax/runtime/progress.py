"""How far a long job has come, for whoever watches the terminal or reads the log."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

#: Seconds between two lines in a log.
INTERVAL = 10.0


class Progress:
    """A count that reports itself: done/total, rate, fields, time left.

    On a terminal one line overwrites itself; in a log a plain line appears every ten seconds, also
    while nothing is finished, and a last one at the end. Lines go to standard error.

        with Progress(len(shards), "prepare", unit="shard") as progress:
            for shard in shards:
                progress.update(pairs=count)
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str = "step",
        start: int = 0,
        stream=None,
        shown: bool = True,
        per_minute: bool = False,
        ask: Callable[[], tuple[int, dict[str, Any]] | None] = lambda: None,
    ):
        """Starts at `start` of `total`; `stream` is standard error unless given.

        shown: False in the processes of a run that leave the talking to another. per_minute: the
        rate is that of a minute, where units are slow and people count them so. ask: how many are
        done and fields, if that is known without being told; asked in a thread, before every line.
        """
        self.total, self.label, self.unit, self.done = total, label, unit, start
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._interval = 0.1 if self._tty else INTERVAL
        self._fields: dict[str, Any] = {}
        self._updates, self._visible, self._per_minute = 0, shown, per_minute
        self._ask, self._doing = ask, ""
        self._lock = threading.RLock()
        self._ticker = _Ticker(self._tick)
        self._last = self._shown_at = time.monotonic()
        self._first, self._began = (self._last, start), self._last
        self._shown: int | None = None

    def update(self, n: int = 1, **fields: Any) -> None:
        """`n` more units are done; `fields` (such as loss=2.31) are shown until replaced."""
        with self._lock:
            self.reach(self.done + n, **fields)

    def reach(self, done: int, **fields: Any) -> None:
        """`done` units are done in all; where that was known before, only `fields` are new."""
        now = time.monotonic()
        with self._lock:
            self._advance(done, fields, now)
            if self._visible and now - self._shown_at >= self._interval:
                self._show(now)

    def doing(self, what: str) -> None:
        """Shows `what` until the next unit is done: what takes long, and is none."""
        with self._lock:
            self._doing = what

    def close(self) -> None:
        """Shows where it ended and leaves the line; nothing where nothing was done."""
        self._ticker.stop()
        if not self._updates or not self._visible:
            return
        if self._shown != self.done:
            self._show(time.monotonic())
        if self._tty:
            self._stream.write("\n")
            self._stream.flush()

    def __enter__(self) -> "Progress":
        """The block closes it."""
        if self._visible:
            self._ticker.start()
        return self

    def __exit__(self, *exception) -> None:
        """Closes it, also after an error."""
        self.close()

    def line(self, now: float) -> str:
        """The report at the time `now` of `time.monotonic`."""
        since, start = self._first
        # What comes after the last unit does not slow the units down.
        elapsed, count = (now if self.done < self.total else self._last) - since, self.done - start
        rate = count / elapsed if elapsed > 0 else 0.0
        parts = [f"{self.label}  {self.unit} {self.done}/{self.total}"]
        if rate:
            parts.append(self._rate(rate))
        else:
            parts.append(f"{self._doing or 'begun'}, {_clock(now - self._began)} so far")
        parts += [f"{name} {_number(value)}" for name, value in self._fields.items()]
        if rate and self.done < self.total:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        return "  ".join(parts)

    def _advance(self, done: int, fields: dict[str, Any], now: float) -> None:
        self._fields.update(fields)
        if done <= self.done and self._updates:
            return
        if self._updates == 1:
            # The first unit holds the compilation: once another is done, the rate forgets it.
            self._first = (self._last, self.done)
        self.done, self._last, self._doing = done, now, ""
        self._updates += 1

    def _tick(self) -> None:
        told = self._ask()
        with self._lock:
            now = time.monotonic()
            if told is not None:
                self._advance(told[0], told[1], now)
            if now - self._shown_at >= self._interval:
                self._show(now)

    def _rate(self, rate: float) -> str:
        if self._per_minute:
            return f"{60 * rate:.3g} {self.unit}/min"
        return f"{rate:.3g} {self.unit}/s" if rate >= 1 else f"{1 / rate:.3g} s/{self.unit}"

    def _show(self, now: float) -> None:
        text = self.line(now)
        if self._tty:
            width = shutil.get_terminal_size().columns - 1
            text = f"\r{text[:width]}\x1b[K"
        else:
            text += "\n"
        self._stream.write(text)
        self._stream.flush()
        self._shown_at, self._shown = now, self.done


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says on standard error every ten seconds that `what` still goes on in the block.

    It is a decorator, too.
    """
    began = shown = time.monotonic()

    def tick() -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= INTERVAL:
            print(f"{what}, {_clock(now - began)} so far", file=sys.stderr, flush=True)
            shown = now

    ticker = _Ticker(tick)
    ticker.start()
    try:
        yield
    finally:
        ticker.stop()


class _Ticker:
    """Calls a function every second, in a thread of its own."""

    def __init__(self, function: Callable[[], None]):
        self._function, self._stopped = function, threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Once this returns, the function is not called any more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(1.0):
            # Whoever reads it is gone: the next line of the program itself says so.
            with contextlib.suppress(OSError):
                self._function()


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
