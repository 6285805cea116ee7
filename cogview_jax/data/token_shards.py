"""The files of a token store while it is written, shard by shard.

DIR/plan.json                     what the store is made from; the first run writes it
DIR/tokens-00000.array_record     the examples of source records 0 to S-1, ...
DIR/tokens-00000.json             written after its shard: counts, hash, what was skipped
DIR/manifest.json                 written last; without it the store is unfinished
"""

import json
from collections.abc import Iterable
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

from cogview_jax.data.records import BadRecord
from cogview_jax.data.token_records import FORMAT, TokenRecord, encode_record
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path, sha256_file, write_json

PLAN, MANIFEST = "plan.json", "manifest.json"


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
            started = json.loads(path.read_text(encoding="utf-8"))
            self._refuse_other(started)
        else:
            write_json(path, self.plan)

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

    def note(self, shard: int) -> dict | None:
        """What was noted about a written shard; None while it is missing or not whole."""
        path = self._path(shard)
        if not path.with_suffix(".json").exists() or not path.exists():
            return None
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return note if path.stat().st_size == note["bytes"] else None

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
                writer.write(encode_record(example))
                count, captions = count + 1, captions + len(example.captions)
            writer.close()
        note = {
            "file": path.name,
            "examples": count,
            "captions": captions,
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
            "skipped": [{"key": bad.key, "reason": bad.reason} for bad in skipped],
        }
        write_json(path.with_suffix(".json"), note)

    def finish(self, meta: dict) -> None:
        """Writes the manifest, with `meta` (JSON values) for readers, once every shard is there."""
        notes = [self.note(shard) for shard in self.shards]
        assert all(notes), "finish() before the last shard"
        shards = [{key: note[key] for key in note if key != "skipped"} for note in notes]
        manifest = {
            "format": FORMAT,
            "examples": sum(note["examples"] for note in notes),
            "captions": sum(note["captions"] for note in notes),
            "skipped": sum(len(note["skipped"]) for note in notes),
            "plan": self.plan,
            "meta": meta,
            "shards": shards,
        }
        write_json(self.directory / MANIFEST, manifest)

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
