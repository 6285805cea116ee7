"""The log of records that were skipped, and the limit to their share."""

import json
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cogview_jax.data.records import BadRecord
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_regular
from cogview_jax.runtime.leftovers import set_aside

FILE = "skipped.jsonl"
#: Of the log, the most bytes that are read.
LIMIT = 1 << 30
#: How many records are met before the share of those that cannot be used is judged.
AT_LEAST = 20


@dataclass(frozen=True)
class Skipped:
    """A record that was left out, and why: by a filter, or since it cannot be used."""

    key: str
    reason: str
    filtered: bool = False

    @classmethod
    def of(cls, error: BadRecord) -> "Skipped":
        """The record that could not be read."""
        return cls(error.key, error.reason, error.filtered)


def skipped_line(key: str, reason: str) -> str:
    """A record as `FILE` has it."""
    return json.dumps({"key": key, "reason": reason}, ensure_ascii=False) + "\n"


@dataclass
class SkipCounts:
    """How many records were read, how many of them could not be used, and the limit to that.

    Attributes:
        met: records that were read, good and bad.
        skipped: those that could not be used.
        filtered: those that filters left out, which count as good ones.
        last: the last that could not be used, for messages.
        views: so many that were counted in a row are of one record.
    """

    met: int = 0
    skipped: int = 0
    filtered: int = 0
    last: str = ""
    views: int = 1

    def add(self, met: int, left_out: Iterable[Skipped]) -> None:
        """Counts so many records, some of which were left out."""
        self.met += met
        for record in left_out:
            if record.filtered:
                self.filtered += 1
            else:
                self.skipped += 1
                self.last = f"{record.key}: {record.reason}"

    def check(
        self, max_skipped: float, listed: Callable[[], Path], at_least: int = AT_LEAST
    ) -> None:
        """Refuses a source of which too much cannot be used.

        Args:
            max_skipped: the share of records that may be skipped.
            listed: tells where they are listed, and lists them if need be.
            at_least: how many records must have been met before the share is judged.

        Raises:
            InputError: the share is larger.
        """
        met, skipped = self.records(self.met), self.records(self.skipped)
        if met >= at_least and (share := self.skipped / self.met) > max_skipped:
            raise InputError(
                f"{skipped} of {met} records could not be used ({share:.1%}), more than"
                f" data.max_skipped={max_skipped:g} allows; the last was {self.last};"
                f" all are in {listed()}"
            )

    def check_all(self, max_skipped: float, listed: Callable[[], Path]) -> None:
        """As `check`, once everything is read, however few records there are.

        Raises:
            InputError: too much was skipped, or all that was read was filtered.
        """
        if self.met and self.filtered == self.met:
            raise InputError(
                f"data.filter leaves out all {self.records(self.met)} records; why is in {listed()}"
            )
        self.check(max_skipped, listed, at_least=1)

    def records(self, counted: int) -> int:
        """How many records so many views are of."""
        return -(-counted // self.views)


class SkippedLog:
    """Appends each skipped record once to DIR/skipped.jsonl and stops a run that skips too many.

    A few unreadable records in a million are life; one in ten is a wrong path or a broken disk,
    and training on the rest would hide it. The share is counted over distinct records that this
    process has met, so neither epochs nor restarts distort it. Records that a filter leaves out are
    listed too, and count as good ones. Safe to use from many threads; the
    processes of one run may share the file (each appends whole lines).
    """

    def __init__(
        self, directory: str | Path, *, max_skipped: float = 0.05, at_least: int = AT_LEAST
    ):
        """Reads what earlier runs have written; the file is made with its first line.

        Args:
            directory: where the file lies.
            max_skipped: the share of records that may be skipped, 0 to 1.
            at_least: how many records must have been met before the share is judged.

        Raises:
            InputError: `max_skipped` is not a share.
        """
        check_share(max_skipped)
        self.path = Path(directory) / FILE
        self._max_skipped, self._at_least = max_skipped, at_least
        self._lock = threading.Lock()
        self._met = bytearray()  # a byte a record: whether this process has met it
        self._seen = 0
        self._skipped: set[str] = set()
        self._filtered: set[str] = set()
        self._last, self._announced = "", False
        written = _written(self.path)
        *lines, cut = written.split(b"\n")
        keys = [_key(line) for line in lines]
        self._written = {key for key in (*keys, _key(cut)) if key is not None}
        if damaged := sum(bool(line) for line, key in zip(lines, keys, strict=True) if key is None):
            _log(f"{self.path}: {damaged} of its {len(lines)} lines are damaged, and passed over")
        # A run killed while writing leaves half a line, which must not swallow the next one.
        self._prefix = "\n" if cut else ""

    @property
    def seen(self) -> int:
        """How many distinct records were met, good and bad."""
        return self._seen

    @property
    def skipped(self) -> int:
        """How many distinct records of those could not be used."""
        return len(self._skipped)

    @property
    def filtered(self) -> int:
        """How many distinct records of those were left out by filters."""
        return len(self._filtered)

    def describe(self, reader: str = "") -> str:
        """What was skipped, in one line; empty where nothing was.

        `reader` is this process of several, each of which counts what it has read itself.
        """
        if not self._skipped:
            return ""
        read = f"{reader} has read" if reader else "were read"
        return (
            f"{self.skipped:,} of the {self._seen:,} records that {read} could not be used and"
            f" were replaced by others; the last was {self._last}; all are in {self.path}"
        )

    def see(self, index: int) -> None:
        """Record `index` of the source is about to be read."""
        with self._lock:
            if index >= len(self._met):
                self._met.extend(bytes(index + 1 - len(self._met)))
            self._seen += not self._met[index]
            self._met[index] = 1

    def add(self, key: str, reason: str, *, filtered: bool = False) -> None:
        """The record `key` could not be used, or a filter left it out."""
        with self._lock:
            if filtered:
                self._filtered.add(key)
            else:
                self._skipped.add(key)
                self._last = f"{key}: {reason}"
            if key in self._written:
                return
            self._written.add(key)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{self._prefix}{skipped_line(key, reason)}")
                self._prefix = ""
            except OSError as error:
                if not self._announced:
                    why = faults.reason(error)
                    _log(f"{self.path}: {why}: what is skipped is counted, not listed")
                self._announced = True

    def check(self) -> None:
        """Raises InputError if too large a share was skipped."""
        counts = SkipCounts(self._seen, self.skipped, self.filtered, self._last)
        counts.check(self._max_skipped, lambda: self.path, self._at_least)


def check_share(max_skipped: float) -> None:
    """InputError unless the limit is a share."""
    if not 0.0 <= max_skipped <= 1.0:
        raise InputError(f"max_skipped={max_skipped}: expected a share from 0 to 1")


def _written(path: Path) -> bytes:
    """The log of earlier runs; empty, with a message, where it cannot be read."""
    try:
        return read_regular(path, LIMIT)
    except FileNotFoundError:
        return b""
    except OSError as error:
        _log(f"{path}: {faults.reason(error)}: what earlier runs have listed is not known")
        return b""
    except InputError as error:
        set_aside(path, str(error).removeprefix(f"{path}: "))
        return b""


def _key(line: bytes) -> str | None:
    """The key in a line; None where it is damaged, or the half line of a killed run."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    key = found.get("key") if isinstance(found, dict) else None
    return key if isinstance(key, str) else None


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
