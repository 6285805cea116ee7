"""The files of a token store while it is written, shard by shard.

DIR/plan.json                     what the store is made from; the first run writes it
DIR/tokens-00000.array_record     the examples of source records 0 to S-1, ...
DIR/tokens-00000.json             written after its shard: counts, hash, what was skipped
DIR/manifest.json                 written last; without it the store is unfinished

Each JSON file carries the hash of its own content, each record the store and the place it was
written for. Stores of before have neither, and are read all the same.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from cogview_jax.data.records import BadRecord
from cogview_jax.data.token_records import FORMAT, RecordLocation, TokenRecord, encode_record
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path, sha256_file, write_json
from cogview_jax.runtime.sealed import SEAL, check_seal, read_object, read_sealed, seal_of, sealed

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
class Skipped:
    """A record that was left out, and why: by a filter, or since it cannot be used."""

    key: str
    reason: str
    filtered: bool = False


@dataclass(frozen=True)
class Note:
    """The note that is written beside a shard."""

    shard: Shard
    skipped: list[Skipped]


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


class TokenShards:
    """The shards of a store that is being written, and which of them are missing."""

    def __init__(self, directory: str | Path, *, plan: dict, records: int, shard_size: int):
        """Starts a store, or goes on with one.

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
        self._records, self._shard_size = records, shard_size
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

    @property
    def finished(self) -> bool:
        """Whether the manifest is written."""
        return (self.directory / MANIFEST).exists()

    @property
    def shards(self) -> range:
        """The numbers of all shards."""
        return range(-(-self._records // self._shard_size))

    def span(self, shard: int) -> range:
        """The source records that `shard` covers."""
        start = shard * self._shard_size
        return range(start, min(start + self._shard_size, self._records))

    def note(self, shard: int) -> Note | None:
        """What was noted about a written shard; None while it is missing or not whole.

        A note that is damaged is said, and the shard counts as missing.
        """
        path = self._path(shard)
        if not path.with_suffix(".json").exists() or not path.exists():
            return None
        try:
            noted = read_sealed(path.with_suffix(".json"))
            noted.pop(SEAL, None)
            skipped = noted.pop("skipped", None)
            where = str(path.with_suffix(".json"))
            note = build(Note, {"shard": noted, "skipped": skipped}, where)
        except InputError as error:
            print(f"{error}; its shard is written again", file=sys.stderr, flush=True)
            return None
        whole = note.shard.file == path.name and path.stat().st_size == note.shard.bytes
        return note if whole else None

    def write_shard(
        self, shard: int, examples: Iterable[TokenRecord], skipped: list[BadRecord]
    ) -> None:
        """Writes `shard`; it appears whole, its note after it.

        Args:
            shard: its number.
            examples: the tokenized records of its span, in order.
            skipped: those left out; may grow while `examples` is read.
        """
        path = self._path(shard)
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
        }
        write_json(path.with_suffix(".json"), sealed(note))

    def finish(self, meta: dict) -> None:
        """Writes the manifest, with `meta` (JSON values) for readers, once every shard is there."""
        notes = [note for shard in self.shards if (note := self.note(shard)) is not None]
        assert len(notes) == len(self.shards), "finish() before the last shard"
        manifest = {
            "format": FORMAT,
            "examples": sum(note.shard.examples for note in notes),
            "captions": sum(note.shard.captions for note in notes),
            "skipped": sum(len(note.skipped) for note in notes),
            "plan": self.plan,
            "meta": meta,
            "shards": [asdict(note.shard) for note in notes],
            STORE: self._store,
        }
        write_json(self.directory / MANIFEST, sealed(manifest))

    def _path(self, shard: int) -> Path:
        return self.directory / f"tokens-{shard:05}.array_record"

    def _refuse_other(self, started: dict) -> None:
        keys = [k for k in {**started, **self.plan} if started.get(k) != self.plan.get(k)]
        if keys:
            changes = (f"{k} was {started.get(k)!r}, is {self.plan.get(k)!r}" for k in keys)
            raise InputError(
                f"{self.directory} holds a token store made from something else:"
                f" {'; '.join(changes)}; expected the same, or another folder"
            )


def _skipped_entry(bad: BadRecord) -> dict[str, str | bool]:
    """`Skipped` as a note has it."""
    entry: dict[str, str | bool] = {"key": bad.key, "reason": bad.reason}
    return entry | {"filtered": True} if bad.filtered else entry
