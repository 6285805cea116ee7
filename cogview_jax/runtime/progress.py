"""How far a long job has come, for whoever watches the terminal or reads the log."""

import shutil
import sys
import time
from typing import Any


class Progress:
    """A count that reports itself: done/total, rate, fields, time left.

    On a terminal one line overwrites itself; in a log a plain line appears at most every ten
    seconds, and a last one at the end. Lines go to standard error.

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
    ):
        """Starts at `start` of `total`; `stream` is standard error unless given.

        shown: False in the processes of a run that leave the talking to another. per_minute: the
        rate is that of a minute, where units are slow and people count them so.
        """
        self.total, self.label, self.unit, self.done = total, label, unit, start
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._interval = 0.1 if self._tty else 10.0
        self._fields: dict[str, Any] = {}
        self._updates, self._visible, self._per_minute = 0, shown, per_minute
        self._last = self._shown_at = time.monotonic()
        self._first = (self._last, start)
        self._shown = None

    def update(self, n: int = 1, **fields: Any) -> None:
        """`n` more units are done; `fields` (such as loss=2.31) are shown until replaced."""
        self.done += n
        self._fields.update(fields)
        now = time.monotonic()
        if self._updates == 1:
            # The first unit holds the compilation: once another is done, the rate forgets it.
            self._first = (self._last, self.done - n)
        self._updates += 1
        self._last = now
        if self._visible and now - self._shown_at >= self._interval:
            self._show(now)

    def close(self) -> None:
        """Shows where it ended and leaves the line; nothing where nothing was done."""
        if not self._updates or not self._visible:
            return
        if self._shown != self.done:
            self._show(time.monotonic())
        if self._tty:
            self._stream.write("\n")
            self._stream.flush()

    def __enter__(self) -> "Progress":
        """The block closes it."""
        return self

    def __exit__(self, *exception) -> None:
        """Closes it, also after an error."""
        self.close()

    def line(self, now: float) -> str:
        """The report at the time `now` of `time.monotonic`."""
        since, start = self._first
        elapsed, count = now - since, self.done - start
        rate = count / elapsed if elapsed > 0 else 0.0
        parts = [f"{self.label}  {self.unit} {self.done}/{self.total}"]
        if rate:
            parts.append(self._rate(rate))
        parts += [f"{name} {_number(value)}" for name, value in self._fields.items()]
        if rate and self.done < self.total:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        return "  ".join(parts)

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


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
