"""Writing a token store from a source, so that an interrupted run goes on where it stopped."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from cogview_jax.data.batching import batched
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.source import Source, readers_of
from cogview_jax.data.token_records import TokenRecord
from cogview_jax.data.token_shards import TokenShards
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.progress import Progress

# For each record, the text ids of its captions and its image codes [n].
Encoded = tuple[Sequence[np.ndarray], np.ndarray]
Encode = Callable[[list[Record]], Sequence[Encoded]]


def write_store(
    directory: str | Path,
    source: Source[Record],
    encode: Encode,
    *,
    plan: dict,
    meta: dict,
    batch_size: int,
    shard_size: int,
    skipped: SkippedLog,
    views: int = 1,
) -> bool:
    """Tokenizes a source into a store, or the rest of it; a finished store is left as it is.

    Args:
        directory: the store.
        source: the captioned images.
        encode: records, at most `batch_size`, -> for each the text ids of its captions and its
            codes [n]. Batches never cross shards, so the same batches come whatever was
            interrupted.
        plan: see `TokenShards`.
        meta: see `TokenShards.finish`.
        batch_size: records read at a time.
        shard_size: records a shard.
        skipped: notes records that cannot be read; they are left out.
        views: so many records in a row are of one image, which counts once in `skipped`.

    Returns:
        Whether there was anything to do.

    Raises:
        InputError: a store with another plan is there, or too many records were skipped.
    """
    shards = TokenShards(directory, plan=plan, records=len(source), shard_size=shard_size)
    if shards.finished:
        return False
    remove_leftovers(directory, owned=True)
    missing = []
    for shard in shards.shards:
        note = shards.note(shard)
        if note is None:
            missing.append(shard)
            continue
        for index in shards.span(shard):
            skipped.see(index // views)
        for bad in note.skipped:
            skipped.add(bad.key, bad.reason, filtered=bad.filtered)
    done = len(source) - sum(len(shards.span(shard)) for shard in missing)
    with Progress(len(source), "tokens", unit="record", start=done) as progress:
        for shard in missing:
            left_out: list[BadRecord] = []
            span = shards.span(shard)
            examples = _tokenized(
                source, span, batch_size, encode, skipped, views, left_out, progress
            )
            shards.write_shard(shard, examples, left_out)
    skipped.check(final=True)
    shards.finish(meta)
    return True


class _Outcomes:
    """A source that hands a bad record over instead of raising it."""

    def __init__(self, source: Source[Record]):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, Record | BadRecord]:
        try:
            return index, self._source[index]
        except BadRecord as error:
            return index, error


def _tokenized(
    source: Source[Record],
    span: range,
    batch_size: int,
    encode: Encode,
    skipped: SkippedLog,
    views: int,
    left_out: list[BadRecord],
    progress: Progress,
) -> Iterator[TokenRecord]:
    """The examples of `span` in order; records that cannot be read go to `left_out`."""
    outcomes = grain.MapDataset.source(_Outcomes(source))[span.start : span.stop]
    batches = batched(outcomes, batch_size, readers_of(source), stack=list)
    # Read ahead while the device encodes.
    reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    with contextlib.closing(iter(batches.to_iter_dataset(reading))) as iterator:
        for batch in iterator:
            for index, outcome in batch:
                skipped.see(index // views)
                if isinstance(outcome, BadRecord):
                    left_out.append(outcome)
                    skipped.add(outcome.key, outcome.reason, filtered=outcome.filtered)
                    skipped.check()
            records = [outcome for _, outcome in batch if isinstance(outcome, Record)]
            encoded = encode(records) if records else ()
            for record, (captions, codes) in zip(records, encoded, strict=True):
                yield TokenRecord(record.key, tuple(captions), codes)
            left = {"filtered": skipped.filtered} if skipped.filtered else {}
            progress.update(len(batch), skipped=skipped.skipped, **left)
