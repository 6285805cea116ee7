"""The files of a token store while it is written, shard by shard.

DIR/plan.json                     what the store is made from; the first run writes it
DIR/tokens-00000.array_record     the examples of source records 0 to S-1, ...
DIR/tokens-00000.json             written after its shard: counts, hash, what was skipped
DIR/skipped.jsonl                 what was skipped in all shards, in their order
DIR/manifest.json                 written last; without it the store is unfinished

Many processes, of several machines, may fill a store at once (`runtime.shared_shards`). A shard
follows from the plan and its number. One more lock than theirs is held while a store is begun and
while it is finished.

DIR/.prepare.lock                 while the tokenizers and the plan are made, and at the end
DIR/.tokens-00000.lock            while a process writes the shard, and after it was killed

Each JSON file carries the hash of its own content, each record the store and the place it was
written for. Stores of before have neither, and are read all the same.
"""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from cogview_jax.data.skipped import FILE, SkipCounts, Skipped, skipped_line
from cogview_jax.data.token_records import FORMAT, RecordLocation, TokenRecord, encode_record
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.files import atomic_path, sha256_file, write_json
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.lock import patiently_locked
from cogview_jax.runtime.sealed import SEAL, check_seal, read_object, read_sealed, seal_of, sealed
from cogview_jax.runtime.shared_shards import SharedShards

PLAN, MANIFEST = "plan.json", "manifest.json"
#: Under this name plan and manifest say what stands for the store in its records: 16 hex digits.
STORE = "store"
#: What a plan says of how a part came about, whose hash it holds too, and of the names of the
#: records: it changes none of them.
ORIGINS = ("text_tokenizer", "listing")


@dataclass(frozen=True)
class Shard:
    """The manifest's entry of a shard: file name, counts of its content, size, SHA-256."""

    file: str
    examples: int
    captions: int
    bytes: int
    sha256: str

    def __post_init__(self):
        for name in ("examples", "captions", "bytes"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} = {getattr(self, name)}: expected at least 0")


@dataclass(frozen=True)
class Note:
    """The note that is written beside a shard.

    Attributes:
        shard: its entry in the manifest.
        skipped: the records that were left out.
        counts: numbers of anything in it, by what they count; those of earlier versions have none.
    """

    shard: Shard
    skipped: list[Skipped]
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What a finished store says of itself; `store` is None in those of before it was said."""

    format: int
    examples: int
    captions: int
    skipped: int
    plan: dict[str, Any]
    meta: dict[str, Any]
    shards: list[Shard]
    store: str | None = None

    def __post_init__(self):
        if self.examples != (held := sum(shard.examples for shard in self.shards)):
            raise InputError(f"examples = {self.examples}, but the shards hold {held}")
        store_bytes(self.store)


def read_manifest(path: Path) -> tuple[dict[str, Any], Manifest]:
    """The manifest of a finished store, as it is written and as a value.

    Raises:
        InputError: it is damaged, or of another format: one line that names it.
    """
    found = read_object(path)
    if found.get("format") != FORMAT:
        raise InputError(
            f"{path.parent}: token store of format {str(found.get('format'))[:60]}, expected"
            f" {FORMAT}; prepare it again"
        )
    check_seal(found, path)
    values = {key: value for key, value in found.items() if key != SEAL}
    return found, build(Manifest, values, str(path))


def store_bytes(store: str | None) -> bytes | None:
    """What stands for a store in its records: 8 bytes, or None in stores of before.

    Raises:
        InputError: it is not written as 16 hexadecimal digits.
    """
    try:
        found = None if store is None else bytes.fromhex(store)
    except ValueError:
        found = b""
    if found is not None and len(found) != 8:
        raise InputError(f"{STORE} = {str(store)[:60]!r}: expected 16 hexadecimal digits")
    return found


@contextlib.contextmanager
def alone(directory: Path, does: str) -> Iterator[None]:
    """In the block no other process begins or finishes the store; it is waited for.

    Args:
        directory: the store.
        does: what another process does with it meanwhile, for the line that says so.
    """
    what = f"the token store {directory}"
    advice = f"start other processes once {PLAN} is there"
    with patiently_locked(
        directory / ".prepare.lock", what, f"{what}: another process {does} it", advice
    ):
        yield


class TokenShards(SharedShards):
    """The shards of a store that is being written, and which of them are missing."""

    def __init__(self, directory: str | Path, *, plan: dict, records: int, shard_size: int):
        """Starts a store, under its lock (`alone`), or goes on with one.

        Args:
            directory: the store; made if needed.
            plan: JSON values that say what it is made from (source, codec, text tokenizer).
            records: how many records the source has.
            shard_size: how many of them go into a shard (S).

        Raises:
            InputError: the folder holds a store with another plan.
        """
        if shard_size < 1:
            raise InputError(f"shard_size={shard_size}: expected at least 1")
        self.directory = Path(directory)
        self.records, self._shard_size = records, shard_size
        self.plan = json.loads(json.dumps({"records": records, "shard_size": shard_size, **plan}))
        path = self.directory / PLAN
        if path.exists():
            started = read_sealed(path)
            self._store = started.pop(STORE, None)
            started.pop(SEAL, None)
            self._refuse_other(started)
        else:
            told = {key: value for key, value in self.plan.items() if key not in ORIGINS}
            self._store = seal_of(told)[:16]
            write_json(path, sealed(self.plan | {STORE: self._store}))
        self._store_bytes = store_bytes(self._store)
        self._damaged: set[int] = set()  # shards of which it was said

    @property
    def finished(self) -> bool:
        """Whether the manifest is written."""
        return (self.directory / MANIFEST).exists()

    @property
    def shards(self) -> range:
        """The numbers of all shards."""
        return range(-(-self.records // self._shard_size))

    def span(self, shard: int) -> range:
        """The source records that `shard` covers."""
        start = shard * self._shard_size
        return range(start, min(start + self._shard_size, self.records))

    def path(self, shard: int) -> Path:
        """The file of `shard`."""
        return self.directory / f"tokens-{shard:05}.array_record"

    def is_whole(self, shard: int) -> bool:
        """Whether `shard` is written, and its note."""
        return self.note(shard) is not None

    def note(self, shard: int) -> Note | None:
        """What was noted about a written shard; None while it is missing or not whole.

        A note that is damaged is said, and the shard counts as missing.
        """
        path = self.path(shard)
        if not path.with_suffix(".json").exists() or not path.exists():
            return None
        try:
            noted = read_sealed(path.with_suffix(".json"))
            noted.pop(SEAL, None)
            skipped = noted.pop("skipped", None)
            where = str(path.with_suffix(".json"))
            counts = noted.pop("counts", {})
            note = build(Note, {"shard": noted, "skipped": skipped, "counts": counts}, where)
        except InputError as error:
            if shard not in self._damaged:
                print(f"{error}; its shard is written again", file=sys.stderr, flush=True)
            self._damaged.add(shard)
            return None
        whole = note.shard.file == path.name and path.stat().st_size == note.shard.bytes
        return note if whole else None

    def written(self, among: Collection[int]) -> Iterator[tuple[int, Note]]:
        """Those of the shards `among` that are whole, with their notes."""
        names = set(os.listdir(self.directory))
        for shard in among:
            if self.path(shard).with_suffix(".json").name in names:
                note = self.note(shard)
                if note is not None:
                    yield shard, note

    def write_shard(
        self,
        shard: int,
        examples: Iterable[TokenRecord],
        skipped: Iterable[Skipped],
        counts: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """Writes `shard`; it appears whole, its note after it.

        Args:
            shard: its number.
            examples: the tokenized records of its span, in order.
            skipped: those left out; may grow while `examples` is read.
            counts: what its note counts beside them; asked once they are written.
        """
        try:
            self._write(shard, examples, skipped, counts)
        except FileNotFoundError:
            # Where locks do not hold, another process may have written the shard as well, and
            # have finished the store, for which it removed what was half-written.
            if not self.is_whole(shard):
                raise

    def list_skipped(self, skipped: Iterable[Skipped]) -> Path:
        """Lists what shards that are whole have skipped, and `skipped`; returns the file."""
        noted = (note.skipped for _, note in self.written(self.shards))
        path = self.directory / FILE
        _write_list(path, itertools.chain(itertools.chain.from_iterable(noted), skipped))
        return path

    def finish(self, meta: dict, max_skipped: float, views: int = 1) -> None:
        """Writes the list of what was skipped, and the manifest, once every shard is there.

        Any process may do so, also several one after the other: who comes later changes nothing.

        Args:
            meta: JSON values for readers.
            max_skipped: the share of records that may be skipped.
            views: so many records in a row are of one image, which counts once.

        Raises:
            InputError: too many were skipped. They are listed; there is no manifest.
            SystemFault: a shard is no longer there.
        """
        with alone(self.directory, "finishes"):
            if not self.finished:
                self._finish(meta, max_skipped, views)

    def _finish(self, meta: dict, max_skipped: float, views: int) -> None:
        # What is still half-written, also on other machines, is of shards that are whole.
        remove_leftovers(self.directory, owned=True)
        for lock in self.directory.glob(".tokens-*.lock"):
            lock.unlink(missing_ok=True)
        shards, counts, skipped = [], SkipCounts(views=views), 0

        def left_out() -> Iterator[Skipped]:
            nonlocal skipped
            for shard in self.shards:
                note = self.note(shard)
                if note is None:
                    raise SystemFault(
                        f"{self.path(shard)}: no longer whole; run the same command again"
                    )
                shards.append(note.shard)
                counts.add(len(self.span(shard)), note.skipped)
                skipped += len(note.skipped)
                yield from note.skipped

        path = self.directory / FILE
        _write_list(path, left_out())
        counts.check_all(max_skipped, lambda: path)
        manifest = {
            "format": FORMAT,
            "examples": sum(shard.examples for shard in shards),
            "captions": sum(shard.captions for shard in shards),
            "skipped": skipped,
            "plan": self.plan,
            "meta": meta,
            "shards": [asdict(shard) for shard in shards],
            STORE: self._store,
        }
        write_json(self.directory / MANIFEST, sealed(manifest))

    def _write(
        self,
        shard: int,
        examples: Iterable[TokenRecord],
        skipped: Iterable[Skipped],
        counts: Callable[[], dict[str, int]],
    ) -> None:
        path = self.path(shard)
        count = captions = 0
        with atomic_path(path) as temporary:
            # One record a group: reading one at random decodes no other.
            writer = ArrayRecordWriter(str(temporary), "group_size:1")
            for example in examples:
                store = self._store_bytes
                place = None if store is None else RecordLocation(store, shard, count)
                writer.write(encode_record(example, place))
                count, captions = count + 1, captions + len(example.captions)
            writer.close()
        note = {
            "file": path.name,
            "examples": count,
            "captions": captions,
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
            "skipped": [_skipped_entry(bad) for bad in skipped],
            "counts": counts(),
        }
        write_json(path.with_suffix(".json"), sealed(note))

    def _refuse_other(self, started: dict) -> None:
        keys = [k for k in {**started, **self.plan} if started.get(k) != self.plan.get(k)]
        if keys:
            changes = (f"{k} was {started.get(k)!r}, is {self.plan.get(k)!r}" for k in keys)
            raise InputError(
                f"{self.directory} holds a token store made from something else:"
                f" {'; '.join(changes)}; expected the same, or another folder"
            )


def _skipped_entry(bad: Skipped) -> dict[str, str | bool]:
    """`Skipped` as a note has it."""
    entry: dict[str, str | bool] = {"key": bad.key, "reason": bad.reason}
    return entry | {"filtered": True} if bad.filtered else entry


def _write_list(path: Path, skipped: Iterable[Skipped]) -> None:
    """A line for each record, of which all views lie side by side; no file where there is none."""
    records = itertools.groupby(skipped, key=lambda bad: bad.key)
    lines = (skipped_line(key, next(views).reason) for key, views in records)
    first = next(lines, None)
    if first is None:
        path.unlink(missing_ok=True)
        return
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(first)
        file.writelines(lines)
