"""The records that were left out, written down, and the limit to how many may be."""

import json
import sys
import threading
from pathlib import Path

from cogview_jax.data.records import printable
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason as why
from cogview_jax.runtime.files import read_regular

FILE = "skipped.jsonl"
#: Of a file of earlier runs, the most bytes that are read.
LIMIT = 1 << 30


class SkippedLog:
    """Appends each skipped record once to DIR/skipped.jsonl and stops a run that skips too many.

    A few unreadable records in a million are life; one in ten is a wrong path or a broken disk,
    and training on the rest would hide it. The share is counted over distinct records that this
    process has met, so neither epochs nor restarts distort it. Safe to use from many threads; the
    processes of one run may share the file (each appends whole lines).

    The file is only a log: one that cannot be read or written is said once, and stops no run.
    """

    def __init__(self, directory: str | Path, *, max_skipped: float = 0.05, at_least: int = 20):
        """Reads what earlier runs have written; the file is made with its first line.

        Args:
            directory: where the file lies.
            max_skipped: the share of records that may be skipped, 0 to 1.
            at_least: how many records must have been met before the share is judged.

        Raises:
            InputError: `max_skipped` is not a share.
        """
        if not 0.0 <= max_skipped <= 1.0:
            raise InputError(f"max_skipped={max_skipped}: expected a share from 0 to 1")
        self.path = Path(directory) / FILE
        self._max_skipped, self._at_least = max_skipped, at_least
        self._lock = threading.Lock()
        self._met = bytearray()  # a byte a record: whether this process has met it
        self._seen = 0
        self._skipped: set[str] = set()
        self._last = ""
        self._failing = False
        written = self._read()
        self._written = {key for line in written.split(b"\n") if (key := _key(line)) is not None}
        # A run killed while writing leaves half a line, which must not swallow the next one.
        self._prefix = "" if not written or written.endswith(b"\n") else "\n"

    @property
    def seen(self) -> int:
        """How many distinct records were met, good and bad."""
        return self._seen

    @property
    def skipped(self) -> int:
        """How many distinct records of those could not be used."""
        return len(self._skipped)

    def see(self, index: int) -> None:
        """Record `index` of the source is about to be read."""
        with self._lock:
            if index >= len(self._met):
                self._met.extend(bytes(index + 1 - len(self._met)))
            self._seen += not self._met[index]
            self._met[index] = 1

    def add(self, key: str, reason: str) -> None:
        """The record `key` could not be used."""
        key, reason = printable(key), printable(reason)
        with self._lock:
            self._skipped.add(key)
            self._last = f"{key}: {reason}"
            if key in self._written:
                return
            line = json.dumps({"key": key, "reason": reason}, ensure_ascii=False)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"{self._prefix}{line}\n")
            except OSError as error:
                self._fails("written", error)
                return
            self._written.add(key)
            self._prefix, self._failing = "", False

    def check(self, *, final: bool = False) -> None:
        """Raises InputError if too large a share was skipped.

        Args:
            final: nothing more will be read, so judge however few there were.
        """
        if self._seen < (1 if final else self._at_least):
            return
        share = self.skipped / self._seen
        if share > self._max_skipped:
            raise InputError(
                f"{self.skipped} of {self._seen} records could not be used ({share:.1%}), more than"
                f" max_skipped={self._max_skipped:g} allows; the last was {self._last};"
                f" all are in {self.path}"
            )

    def _read(self) -> bytes:
        """What earlier runs have written."""
        try:
            return read_regular(self.path, LIMIT)
        except FileNotFoundError:
            return b""
        except (InputError, OSError) as error:
            self._fails("read", error)
            return b""

    def _fails(self, what: str, error: Exception) -> None:
        if not self._failing:
            print(f"{self.path} cannot be {what} ({why(error)}): going on", file=sys.stderr)
        self._failing = True


def _key(line: bytes) -> str | None:
    """The record that a line names; None for half a line of a killed run, and for a damaged one."""
    try:
        key = json.loads(line)["key"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return key if isinstance(key, str) else None
