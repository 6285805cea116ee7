"""Finds the index of a data set, or makes it: file by file, in several processes.

An index lies in `.cogview-index` beside the files, so that whoever reads them has it; where nothing
may be written there, as at an address, in the user's cache. Its name follows from what it depends
on. Where several processes start at once, one makes it and the others wait.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.record_index import (
    BAD,
    CAPTIONED,
    DESCRIPTION,
    RECORD,
    RECORDS,
    TEXTS,
    VERSION,
    WATCHED,
    RecordIndex,
    Stamp,
    path_within,
    stamp_of,
)
from cogview_jax.data.records import printable
from cogview_jax.data.remote.addresses import is_address
from cogview_jax.data.remote.reader import RemoteReader
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import is_fault, reason
from cogview_jax.runtime.files import atomic_path
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.lock import patiently_locked
from cogview_jax.runtime.paths import user_cache
from cogview_jax.runtime.progress import Progress
from cogview_jax.runtime.sealed import sealed
from cogview_jax.runtime.workers import computed, cores

#: The folder beside the data, and that in the user's cache.
BESIDE, CACHE = ".cogview-index", "cogview_jax/index"
#: Files of fewer bytes together are read in this process, and others in at most so many.
_SMALL, _MOST_PROCESSES = 64 << 20, 8
#: Remote files that are asked for their versions at a time.
_ASKED = 32
#: Rows and bytes of texts that a part keeps in memory, and errors that a message names.
_ROWS, _BYTES, _NAMED = 1 << 14, 1 << 20, 3
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
#: The files of a part: rows, texts, what is watched.
_ENDS = (".rows", ".texts", ".watched")


@dataclass
class Findings:
    """What was found in files beside their records.

    Attributes:
        ignored: entries that are no records.
        counts: numbers of anything, such as records with a caption.
        notes: texts about anything; of several of one name the first stays.
    """

    ignored: Ignored = field(default_factory=Ignored)
    counts: Counter[str] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)

    def update(self, other: "Findings") -> None:
        """Adds what was found in another file, which comes behind."""
        self.ignored.update(other.ignored.reasons())
        self.counts.update(other.counts)
        self.notes = other.notes | self.notes


class IndexPart:
    """The records of one file, written as they are found."""

    def __init__(self, path: Path):
        """Begins a part, whose files are `path` with each of `_ENDS`."""
        self.findings = Findings()
        self.records = self.text_bytes = 0
        self._path = path
        self._waiting_rows: list[tuple[int, int, int, int]] = []
        self._waiting_texts: list[bytes] = []
        self._waiting_watched: list[bytes] = []
        self._bytes = 0

    def add(self, key: str, captions: Sequence[str], offset: int, size: int) -> None:
        """Adds a record: its name within the file, its captions, and the place of its image.

        An image of size NO_PLACE of `record_index` has a number as its offset. Captions are Unicode
        and not empty; a NUL in them becomes a blank.
        """
        self.findings.counts[CAPTIONED] += bool(captions)
        self._add([key, *captions], offset, size)

    def add_bad(self, key: str, reason: str) -> None:
        """Adds a record that cannot be used. It keeps its place, so that others have theirs."""
        bad = [key, printable(reason)]
        self.findings.counts[BAD] += 1
        self.findings.notes.setdefault(BAD, ": ".join(bad))
        self._add(bad, 0, 0)

    def watch(self, name: str, stamp: Stamp) -> None:
        """Makes the index depend on the file or folder at a path within the root, too."""
        size, version = stamp
        self._waiting_watched.append(f"{size} {version} ".encode() + os.fsencode(name) + b"\0")

    @property
    def folder(self) -> Path:
        """A folder for what is needed meanwhile; it is removed where the work breaks off."""
        return self._path.parent

    def flush(self) -> None:
        """Writes what is still in memory."""
        waiting = (
            np.array(self._waiting_rows, RECORD).tobytes(),
            b"".join(self._waiting_texts),
            b"".join(self._waiting_watched),
        )
        for end, data in zip(_ENDS, waiting, strict=True):
            with open(f"{self._path}{end}", "ab") as file:
                file.write(data)
        self._waiting_rows, self._waiting_texts, self._waiting_watched = [], [], []
        self._bytes = 0

    def _add(self, texts: list[str], offset: int, size: int) -> None:
        texts[0] = printable(texts[0])
        data = "\0".join(text.replace("\0", " ") for text in texts).encode()
        self._waiting_rows.append((0, size, offset, self.text_bytes))
        self._waiting_texts.append(data)
        self.records += 1
        self.text_bytes += len(data)
        self._bytes += len(data)
        if len(self._waiting_rows) >= _ROWS or self._bytes >= _BYTES:
            self.flush()


#: Adds the records of the file at a path to a part. It is a value that can be pickled.
Scan = Callable[[str, IndexPart], None]


def open_index(
    root: str | os.PathLike,
    files: Sequence[str],
    scan: Scan,
    *,
    depends_on: dict[str, Any],
    beside: str | os.PathLike,
    place: str = "",
    unit: str = "file",
    reader: RemoteReader | None = None,
    setting: str = "data.source.index",
) -> RecordIndex:
    """Opens the index of some files; makes it where there is none, or the files were changed.

    Args:
        root: the folder in which the files lie, or its address.
        files: their paths within it, in the order that their records have. The empty path is the
            root itself.
        scan: finds the records of a file.
        depends_on: what the records depend on beside the files: JSON values.
        beside: the folder of files where the index lies if that is possible.
        place: the folder for the index, where it is not to lie there or in the cache.
        unit: what a file is called in the line that tells how far the work is.
        reader: reads records out of files at an address.
        setting: names a folder for the index, for messages.

    Raises:
        InputError: a file is not what it should be, or the index can be written nowhere.
        SystemFault: the machine cannot read or write something.
    """
    root = os.fspath(root) if reader else os.path.abspath(root)
    places = _places(root, depends_on, Path(beside), place)
    index, _ = _found(places, root, _stamps(root, files), reader)
    if index:
        return index
    for number, folder in enumerate(places):
        try:
            with patiently_locked(
                folder.with_name(f"{folder.name}.lock"),
                f"index {folder}",
                f"index {folder}: another process makes it",
            ):
                now = _stamps(root, files)  # who made it meanwhile may have changed the root itself
                index, why = _found([folder], root, now, reader)
                if why:
                    print(f"index {folder}: {why}: it is made anew", file=sys.stderr, flush=True)
                if not index:
                    _make(folder, root, now, scan, unit)
                return index or RecordIndex(folder, root, reader)
        except OSError as error:
            if is_fault(error):
                raise SystemFault(f"index {folder}: {reason(error)}") from error
            if error.errno not in _READ_ONLY:
                raise
            if number == len(places) - 1:
                raise InputError(
                    f"index {folder}: {reason(error)}: name a folder that may be written to as"
                    f" {setting}"
                ) from None
    raise AssertionError("there is a last place")


def find_index(
    root: str | os.PathLike,
    files: Sequence[str],
    *,
    depends_on: dict[str, Any],
    beside: str | os.PathLike,
) -> RecordIndex | None:
    """The index of some local files if `open_index` need not make it; raises as that does."""
    root = os.path.abspath(root)
    places = _places(root, depends_on, Path(beside), "")
    return _found(places, root, _stamps(root, files), None)[0]


def _places(root: str, depends_on: dict[str, Any], beside: Path, place: str) -> list[Path]:
    """The folders that an index may have, the best first."""

    def name(*parts: Any) -> str:
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    elsewhere = name(depends_on, root)
    if place:
        return [Path(place).absolute() / elsewhere]
    in_cache = user_cache() / CACHE / elsewhere
    if is_address(root):
        return [in_cache]
    return [beside.absolute() / BESIDE / name(depends_on), in_cache]


def _found(
    places: Sequence[Path], root: str, files: dict[str, Stamp], reader: RemoteReader | None
) -> tuple[RecordIndex | None, str]:
    """The first index that holds for the files, or why the first of those that do not does not."""
    reasons = []
    for folder in places:
        try:
            index = RecordIndex(folder, root, reader)
            difference = index.difference(files)
        except (FileNotFoundError, PermissionError):
            continue
        except (InputError, KeyError, TypeError, ValueError) as error:
            difference = str(error).removeprefix(f"{folder}: ")
        if not difference:
            return index, ""
        reasons.append(difference)
    return None, "".join(reasons[:1])


def _stamps(root: str, files: Sequence[str]) -> dict[str, Stamp]:
    """The stamps of some files; of remote ones many are asked for at a time."""
    paths = [path_within(root, name) for name in files]
    if not is_address(root):
        return dict(zip(files, map(stamp_of, paths), strict=True))
    with ThreadPoolExecutor(_ASKED) as pool:
        return dict(zip(files, pool.map(stamp_of, paths), strict=True))


@dataclass(frozen=True)
class _Job:
    """A file that one process scans: its number, its path, and the part that it becomes."""

    scan: Scan
    path: str
    part: str


@dataclass(frozen=True)
class _Part:
    """What came of a job."""

    error: str
    records: int
    text_bytes: int
    stamp: Stamp
    findings: Findings


def _scanned(job: _Job) -> _Part:
    part, error = IndexPart(Path(job.part)), ""
    before: Stamp = 0, 0
    try:
        before = stamp_of(job.path)
        job.scan(job.path, part)
        if stamp_of(job.path) != before:
            error = f"{job.path}: changed while its index was made: wait until it is written"
    except InputError as found:
        error = str(found)
    part.flush()
    return _Part(error, part.records, part.text_bytes, before, part.findings)


def _make(folder: Path, root: str, files: dict[str, Stamp], scan: Scan, unit: str) -> None:
    remove_leftovers(folder.parent)
    paths = [path_within(root, name) for name in files]
    small = sum(size for size, _ in files.values()) < _SMALL
    # Who reads remote files mostly waits.
    most = _MOST_PROCESSES if is_address(root) else min(cores(), _MOST_PROCESSES)
    processes = 1 if small else most
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        jobs = [_Job(scan, path, str(temporary / f"{n}")) for n, path in enumerate(paths)]
        parts, records = [], 0
        with Progress(len(jobs), "index", unit=unit) as progress:
            for part in computed(_scanned, jobs, processes, f"index {folder}"):
                parts.append(part)
                records += part.records
                progress.update(records=records)
        if errors := [part.error for part in parts if part.error]:
            more = len(errors) - _NAMED
            rest = f" (and {more} more of {len(files)} files)" if more > 0 else ""
            raise InputError("; ".join(errors[:_NAMED]) + rest)
        _write(temporary, jobs, parts)
        found = Findings()
        for part in parts:
            found.update(part.findings)
        description = {
            "version": VERSION,
            "records": records,
            "text_bytes": sum(part.text_bytes for part in parts),
            "watched_bytes": _join(temporary / WATCHED, [f"{job.part}{_ENDS[2]}" for job in jobs]),
            "files": [[name, *part.stamp] for name, part in zip(files, parts, strict=True)],
            "counts": found.counts,
            "notes": found.notes,
            "ignored": list(found.ignored.reasons().items()),
        }
        (temporary / DESCRIPTION).write_text(json.dumps(sealed(description)) + "\n")


def _write(folder: Path, jobs: Sequence[_Job], parts: Sequence[_Part]) -> None:
    """Joins the rows and texts of the parts, which are removed one by one."""
    rows_end, texts_end, _ = _ENDS
    count, text = sum(part.records for part in parts), 0
    with open(folder / RECORDS, "wb") as rows:
        header = {"descr": RECORD.descr, "fortran_order": False, "shape": (count + 1,)}
        np.lib.format.write_array_header_1_0(rows, header)
        for number, (job, part) in enumerate(zip(jobs, parts, strict=True)):
            with open(f"{job.part}{rows_end}", "rb") as own:
                while len(block := np.fromfile(own, RECORD, _BYTES)):
                    block["file"] = number
                    block["text"] += np.uint64(text)
                    rows.write(block.tobytes())
            text += part.text_bytes
            os.unlink(f"{job.part}{rows_end}")
        rows.write(np.array([(0, 0, 0, text)], RECORD).tobytes())
    _join(folder / TEXTS, [f"{job.part}{texts_end}" for job in jobs])


def _join(path: Path, parts: Sequence[str]) -> int:
    """Joins files, which are removed one by one, to a file; returns its bytes."""
    with open(path, "wb") as file:
        for part in parts:
            with open(part, "rb") as own:
                shutil.copyfileobj(own, file, _BYTES)
            os.unlink(part)
        return file.tell()
