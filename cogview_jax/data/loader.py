"""The chain from a source to training batches: source, shuffle, repeat, map, batch.

Row r of the global batch of step k sits at position k * global_batch + r of one endless stream, and
everything about it (the record, its augmentation) follows from the seed and that position. So the
step is the whole state of the data: a resumed run, on any number of hosts, reads on exactly where
the unbroken one would have. Of a mixture the position decides the part as well, and how many
positions the part has had before: each part is shuffled and repeated as if it were alone.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grain
import jax
import numpy as np

from cogview_jax.data.batching import batched
from cogview_jax.data.held_out import record_hashes
from cogview_jax.data.interleaving import Interleaving
from cogview_jax.data.records import BadRecord
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.mixture import Mixture, Part, parts_of
from cogview_jax.data.sources.source import Source, readers_of
from cogview_jax.runtime.errors import InputError

Row = TypeVar("Row")
Transform = Callable[[Any, np.random.Generator], Row]
#: Records that are looked at in the place of a filtered one, before those that follow.
_JUMPS = 64


def check_seed(seed: int) -> None:
    """InputError for a seed of rows that is negative or has more than 32 bits."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}: expected 0 to {2**32 - 1}")


def batches(
    source: Source,
    *,
    global_batch: int,
    seed: int,
    transform: Transform[Row],
    skipped: SkippedLog,
    start: int = 0,
    parts: Sequence[int] = (0,),
    ways: int = 1,
    threads: int = 2,
) -> grain.DatasetIterator[Row]:
    """An endless iterator over this host's rows of the global batches, in a new order each epoch.

    Args:
        source: where records come from; `TokenStore` is one too. One that cannot be read is
            replaced by another, of a `Mixture` by one of the same part, and noted in `skipped`.
        global_batch: rows of a step over all hosts (b); `ways` must divide it.
        seed: 0 to 2**32 - 1.
        transform: record, generator -> a pytree of arrays of fixed shapes, such as
            `layout.Example`. The generator depends on the seed and the position in the stream only.
        skipped: notes what was skipped, and stops the run if that is too much.
        start: the step whose batch comes first.
        parts: which parts of the rows are this host's, ascending: part i of n has rows i*b/n to
            (i+1)*b/n. Hosts that hold the same rows of the mesh pass the same parts.
        ways: the number of parts, n.
        threads: batches that are made at a time, ahead of the training step.

    Returns:
        An iterator of the same pytrees with arrays [len(parts) * b/n, ...]; its `close()` stops
        the threads.

    Raises:
        InputError: the batch cannot be divided, the seed is out of range; while iterating, too
            many records were skipped.
    """
    if global_batch % ways:
        raise InputError(
            f"global_batch={global_batch}: expected a multiple of the {ways} parts it is cut into"
        )
    check_seed(seed)
    rows = _stream(source, seed, skipped).random_map(transform)
    # Neighbouring parts are cut as one where that gives the same rows.
    run = len(parts)
    if list(parts) == list(range(parts[0], parts[0] + run)) and ways % run == parts[0] % run == 0:
        parts, ways = (parts[0] // run,), ways // run
    cut = batched(rows, global_batch // ways, readers_of(source), drop_remainder=True)
    mine = [cut[part::ways] for part in parts]
    stream = mine[0] if len(mine) == 1 else grain.experimental.ZipMapDataset(mine).map(_joined)
    # Threads only: the decoders and the store release the interpreter lock, and worker processes
    # would outlive a killed run.
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(stream.to_iter_dataset(reading))
    iterator.set_state({"next_index": start})
    return iterator


def _joined(parts: Sequence[Row]) -> Row:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _stream(source: Source[Any], seed: int, skipped: SkippedLog) -> grain.MapDataset[Any]:
    """The endless stream of records, shuffled anew in each epoch; of a mixture in that of a part.

    Parts have seeds of their own, by their names: two of the same size are shuffled differently,
    and a part that is added changes the order of no other.
    """
    streams = [
        grain.MapDataset.source(_Readable(part, skipped))
        .seed(_part_seed(seed, part.name))
        .shuffle()
        .repeat()
        for part in parts_of(source)
    ]
    if not isinstance(source, Mixture):
        return streams[0]
    return grain.MapDataset.source(_Interleaved(streams, source.interleaving)).seed(seed)


def _part_seed(seed: int, name: str) -> int:
    """The seed of a part; that of the run where a source is alone and has no name."""
    if not name:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")


class _Interleaved:
    """Endless streams as one."""

    def __init__(self, streams: Sequence[grain.MapDataset[Any]], interleaving: Interleaving):
        self._streams, self._interleaving = streams, interleaving

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Any:
        stream, place = self._interleaving(index)
        return self._streams[stream][place]


class _Readable:
    """A source whose every index gives a record: its own, or another that can be read.

    The next one takes the place of a damaged record. Filters may leave out a thousand in a row, and
    the next one would then come a thousand times as often as others: the record in the place of a
    filtered one is any other, which the index decides.
    """

    def __init__(self, part: Part[Any], skipped: SkippedLog):
        self._source, self._first, self._skipped = part.source, part.first, skipped
        self._of = f" of part {part.name}" if part.name else ""

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        count, jumps = len(self._source), 0
        for _ in range(count + _JUMPS):
            self._skipped.see(self._first + index % count)
            try:
                return self._source[index % count]
            except BadRecord as error:
                self._skipped.add(error.key, error.reason, filtered=error.filtered)
                self._skipped.check()
                index += 1
                if error.filtered and jumps < _JUMPS:
                    jumps += 1
                    hashed = record_hashes(np.array([index + jumps * count], np.uint64))
                    index = int(hashed[0] * count)
        raise InputError(
            f"none of the {count} records{self._of} can be read; see {self._skipped.path}"
        )
