"""How far a long job has come, for whoever watches the terminal or reads the log."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

#: Seconds between two lines in a log.
INTERVAL = 10.0
#: The same on a terminal, where the line is rewritten.
_TERMINAL_INTERVAL = 0.1
_DAY = 24 * 3600
#: Of the terminal, for bars within others. tqdm would ask, and shows none where the answer is 0.
_ROWS = 20


class Progress:
    """A count that reports itself: done/total, time spent and left, rate, fields.

    On a terminal it is a tqdm bar; in a log a plain line appears every ten seconds, also while
    nothing is finished, and a last one at the end. Lines go to standard error.

        with Progress(len(shards), "prepare", unit="shard") as progress:
            for shard in shards:
                progress.update(pairs=count)

    All methods may be called from any thread.
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
        """Starts at `start` of `total`.

        Args:
            total: units in all.
            label: what is done, in front of the line.
            unit: what is counted.
            start: units that an earlier run has done.
            stream: where lines go; standard error if None.
            shown: False in the processes of a run that leave the talking to another.
            per_minute: gives the rate by the minute, for slow units.
            ask: returns how many units are done, and fields, if that is known without `update`; it
                is called in a thread before every line.
        """
        stream = stream or sys.stderr
        self.total, self.done = total, start
        self._terminal = stream.isatty()
        self._interval = _TERMINAL_INTERVAL if self._terminal else INTERVAL
        self._visible, self._ask = shown, ask
        self._fields: dict[str, Any] = {}
        self._doing, self._updates = "", 0
        self._lock = threading.RLock()
        self._ticker = _Ticker(self._tick)
        self._began = self._last = self._shown_at = time.monotonic()
        self._first, self._shown = (self._began, start), -1
        self._bar = _Bar(
            self._more,
            self._terminal,
            desc=label,
            total=total,
            initial=start,
            unit=unit,
            file=stream,
            disable=not shown,
            ncols=0,
            nrows=_ROWS,
            bar_format=_line(self._terminal, per_minute),
        )

    def update(self, n: int = 1, **fields: Any) -> None:
        """`n` more units are done; `fields` (such as loss=2.31) are shown until replaced."""
        with self._lock:
            self.reach(self.done + n, **fields)

    def reach(self, done: int, **fields: Any) -> None:
        """`done` units are done in all; where that was known before, only `fields` are new."""
        now = time.monotonic()
        with self._lock:
            self._advance(done, fields, now)
            self._show_if_due(now)

    def doing(self, what: str) -> None:
        """Shows `what` until the next unit is done: what takes long, and is none."""
        with self._lock:
            self._doing = what

    def say(self, line: str) -> None:
        """Writes a line that stays, above the bar of a terminal."""
        with self._lock:
            self._bar.say(line)

    def close(self) -> None:
        """Shows where it ended and leaves the line; nothing where nothing was done."""
        self._ticker.stop()
        with self._lock:
            if self._updates and self._shown != self.done:
                self._show(time.monotonic())
            self._bar.leave = self._terminal and self._updates > 0
            self._bar.close()

    def __enter__(self) -> "Progress":
        """The block closes it."""
        if self._visible:
            self._ticker.start()
        return self

    def __exit__(self, *exception) -> None:
        """Closes it, also after an error."""
        self.close()

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
        answer = self._ask()
        with self._lock:
            now = time.monotonic()
            if answer is not None:
                self._advance(answer[0], answer[1], now)
            self._show_if_due(now)

    def _show_if_due(self, now: float) -> None:
        if now - self._shown_at >= self._interval:
            self._show(now)

    def _show(self, now: float) -> None:
        self._shown_at, self._shown = now, self.done
        fields = [f"{name}={_number(value)}" for name, value in self._fields.items()]
        self._bar.n = self.done
        self._bar.postfix = ", ".join([*fields, self._doing] if self._doing else fields)
        self._bar.refresh()

    def _more(self) -> dict[str, Any]:
        """What tqdm's format gets beside its own fields; `rate` takes the place of its own."""
        now = time.monotonic()
        since, start = self._first
        # What comes after the last unit does not slow the units down.
        elapsed, count = (now if self.done < self.total else self._last) - since, self.done - start
        rate = count / elapsed if elapsed > 0 else 0.0
        return {
            "rate": rate or None,
            "elapsed": 0,
            "spent": _clock(now - self._began),
            "left": _clock(max(0, self.total - self.done) / rate) if rate else "?",
            "minute_rate": tqdm.format_sizeof(60 * rate) if rate else "?",
        }


class _Bar(tqdm):
    """A tqdm with fields of our own, which writes whole lines where no terminal is."""

    monitor_interval = 0  # the thread that redraws is `Progress`'s own

    def __init__(self, more: Callable[[], dict[str, Any]], terminal: bool, **options: Any):
        self._more, self._terminal = more, terminal
        super().__init__(**options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The fields of a line."""
        width = shutil.get_terminal_size().columns - 1 if self._terminal else None
        return super().format_dict | self._more() | {"ncols": width}

    def say(self, line: str) -> None:
        """Writes a line where it is shown at all."""
        if self.disable:
            return
        if self._terminal:
            self.clear()
        self.fp.write(f"{line}\n")
        self.fp.flush()
        if self._terminal:
            self.refresh()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Shows the line: rewritten on a terminal, or one more in a log."""
        if not hasattr(self, "start_t"):  # tqdm's constructor shows it, before anything is done
            return False
        if self._terminal:
            return super().display(msg, pos)
        if msg is None:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return False


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


def _line(terminal: bool, per_minute: bool) -> str:
    """A format for tqdm; {spent}, {left} and {minute_rate} are ours."""
    bar = "|{bar}|" if terminal else ""
    rate = "{minute_rate}{unit}/min" if per_minute else "{rate_fmt}"
    head = f"{{desc}}: {{percentage:3.0f}}%{bar} {{n_fmt}}/{{total_fmt}}"
    return f"{head} [{{spent}}<{{left}}, {rate}{{postfix}}]"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    """[H:]MM:SS, or days and hours where it is that long."""
    days, rest = divmod(round(seconds), _DAY)
    return f"{days}d {rest // 3600}h" if days else tqdm.format_interval(rest)
