"""Writing a token store from a source, by any number of processes, each of which may be killed."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import grain
import numpy as np

from cogview_jax.data.batching import batched
from cogview_jax.data.prefetch import Prefetched
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.skipped import SkipCounts, Skipped, check_share
from cogview_jax.data.sources.source import Source, readers_of
from cogview_jax.data.token_records import TokenRecord
from cogview_jax.data.token_shards import TokenShards
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.progress import Progress
from cogview_jax.runtime.shared_shards import write_together
from cogview_jax.runtime.workers import cores

# For each record, the text ids of its captions and its image codes [n].
Encoded = tuple[Sequence[np.ndarray], np.ndarray]
Item = TypeVar("Item")


@runtime_checkable
class Encoder(Protocol[Item]):
    """Tokenizes records, in two stages."""

    def fit(self, record: Record) -> Item:
        """What is encoded of a record. Many threads may call it."""

    def encode(self, items: list[Item]) -> Sequence[Encoded]:
        """The tokens of a batch, in its order. One thread calls it."""


#: Of the threads that read and fit records, the most; for how many batches they do so ahead; and
#: into how many parts a batch is divided for them.
MOST_THREADS, AHEAD, PARTS = 16, 2, 8


class ShardWriter:
    """Tokenizes the records of shards, one shard after the other."""

    def __init__(
        self,
        shards: TokenShards,
        source: Source[Record],
        encoder: Encoder,
        *,
        batch_size: int,
        max_skipped: float,
        views: int = 1,
        counted: Callable[[], dict[str, int]] = dict,
    ):
        """Nothing is read.

        Args:
            shards: of the store.
            source: the captioned images.
            encoder: tokenizes them. Batches never cross shards, so the same batches come whatever
                was interrupted.
            batch_size: records of a batch; fewer are encoded where some are left out.
            max_skipped: the share of records that may be skipped.
            views: so many records in a row are of one image, which counts once.
            counted: what the encoder has counted so far, for the notes of shards.

        Raises:
            InputError: `max_skipped` is no share.
        """
        check_share(max_skipped)
        self._shards, self._source, self._encoder = shards, source, encoder
        self._batch_size, self.max_skipped, self.views = batch_size, max_skipped, views
        self._counted = counted
        #: What was met so far, in this process and in the others as far as it knows.
        self.counts = SkipCounts(views=views)

    def write(self, shard: int, done: Callable[[int], None] = lambda records: None) -> None:
        """Writes a shard.

        Args:
            shard: its number.
            done: is told of so many records more, now and then.

        Raises:
            InputError: too many records were skipped. They are listed.
        """
        left_out: list[Skipped] = []
        before = self._counted()

        def counts() -> dict[str, int]:
            return {what: count - before[what] for what, count in self._counted().items()}

        self._shards.write_shard(shard, self._examples(shard, left_out, done), left_out, counts)

    def _examples(
        self, shard: int, left_out: list[Skipped], done: Callable[[int], None]
    ) -> Iterator[TokenRecord]:
        """The examples of a shard in order; records that cannot be read go to `left_out`.

        Records are read and fitted in threads of their own, batches are encoded in another, and
        whoever takes the examples writes meanwhile. A few batches are in memory at a time.
        """
        span = self._shards.span(shard)
        with contextlib.ExitStack() as closing:
            read = closing.enter_context(
                reading(self._source, self._encoder, span, self._batch_size)
            )
            encoded = Prefetched(self._encoded(read))
            closing.callback(encoded.close)
            left = len(span)
            while left:
                outcomes, examples = encoded.get()
                for outcome in outcomes:
                    self._count(outcome, left_out)
                yield from examples
                left -= len(outcomes)
                done(len(outcomes))

    def _encoded(
        self, records: Iterator["Outcome"]
    ) -> Iterator[tuple[list["Outcome"], list[TokenRecord]]]:
        """Batches of what was read, with the examples that became of it."""
        while batch := list(itertools.islice(records, self._batch_size)):
            read = [outcome for outcome in batch if isinstance(outcome, FittedItem)]
            encoded = self._encoder.encode([record.item for record in read]) if read else ()
            examples = [
                TokenRecord(record.key, tuple(captions), codes)
                for record, (captions, codes) in zip(read, encoded, strict=True)
            ]
            yield batch, examples

    def _count(self, outcome: "Outcome", left_out: list[Skipped]) -> None:
        bad = [outcome] if isinstance(outcome, Skipped) else []
        left_out += bad
        self.counts.add(1, bad)
        if bad:
            self.counts.check(self.max_skipped, lambda: self._shards.list_skipped(left_out))


def write_store(shards: TokenShards, writer: ShardWriter, meta: dict) -> bool:
    """Writes a store, or the rest of it, together with all processes that do so at the time.

    Each takes a shard that nobody writes and that is not there yet, again and again, and waits in
    the end for what others have taken, which it takes over when they are killed. A finished store
    is left as it is.

    Args:
        shards: of the store.
        writer: writes one of them.
        meta: see `TokenShards.finish`.

    Returns:
        Whether there was anything to do.

    Raises:
        InputError: too many records were skipped.
    """
    if shards.finished:
        return False
    remove_leftovers(shards.directory)
    work = _Work(shards, writer)
    done = work.look()
    with Progress(shards.records, "tokens", unit="record", start=done) as progress:
        work.go(progress)
    shards.finish(meta, writer.max_skipped, writer.views)
    return True


def advance(progress: Progress, records: int, counts: SkipCounts) -> None:
    """Shows that so many records more are done, and what was left out so far."""
    left = {"filtered": counts.records(counts.filtered)} if counts.filtered else {}
    progress.update(records, skipped=counts.records(counts.skipped), **left)


class _Work:
    """What one process does until all shards are whole."""

    def __init__(self, shards: TokenShards, writer: ShardWriter):
        self._shards, self._writer = shards, writer
        self._missing = list(shards.shards)
        self._own: set[int] = set()

    def look(self) -> int:
        """Notes which shards have become whole; returns how many records others have written."""
        whole, met = set(), 0
        for shard, note in self._shards.written(self._missing):
            whole.add(shard)
            if shard not in self._own:
                records = len(self._shards.span(shard))
                self._writer.counts.add(records, note.skipped)
                met += records
        self._missing = [shard for shard in self._missing if shard not in whole]
        return met

    def go(self, progress: Progress) -> None:
        """Writes shards, and waits for those of others."""

        def tell(records: int) -> None:
            advance(progress, records, self._writer.counts)

        def missing() -> list[int]:
            if met := self.look():
                tell(met)
            return self._missing

        def write(shard: int) -> None:
            self._own.add(shard)
            self._writer.write(shard, tell)

        write_together(self._shards, missing, write)


@dataclass(frozen=True)
class FittedItem:
    """A record that can be encoded: its name, and what `Encoder.fit` made of it."""

    key: str
    item: Any


Outcome = FittedItem | Skipped


@contextlib.contextmanager
def reading(
    source: Source[Record], encoder: Encoder, span: range, batch_size: int
) -> Iterator[Iterator[Outcome]]:
    """The records of a span in order, which threads read and fit ahead for some batches.

    Args:
        source: of the records.
        encoder: fits them.
        span: numbers of records.
        batch_size: how many are encoded together.
    """
    fitted = grain.MapDataset.source(_Fitted(source, encoder))[span.start : span.stop]
    # A thread reads a part of a batch, so that many threads are soon done with the first.
    size = -(-batch_size // PARTS)
    options = grain.ReadOptions(
        num_threads=min(cores(), MOST_THREADS),
        prefetch_buffer_size=-(-AHEAD * batch_size // size),
    )
    parts = batched(fitted, size, readers_of(source), stack=list)
    read = iter(parts.to_iter_dataset(options))
    try:
        yield itertools.chain.from_iterable(read)
    finally:
        read.close()


class _Fitted:
    """A source of what is encoded, which hands a bad record over instead of raising it."""

    def __init__(self, source: Source[Record], encoder: Encoder):
        self._source, self._encoder = source, encoder

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Outcome:
        try:
            record = self._source[index]
        except BadRecord as error:
            return Skipped.of(error)
        return FittedItem(record.key, self._encoder.fit(record))
