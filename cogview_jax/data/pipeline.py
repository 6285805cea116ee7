"""The chain from a source to training batches: source, shuffle, repeat, map, batch.

Row r of the global batch of step k sits at position k * global_batch + r of one endless stream, and
everything about it (the record, its augmentation) follows from the seed and that position. So the
step is the whole state of the data: a resumed run, on any number of hosts, reads on exactly where
the unbroken one would have.
"""

from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from cogview_jax.data.records import BadRecord
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources import Source
from cogview_jax.runtime.errors import InputError

Transform = Callable[[Any, np.random.Generator], dict[str, np.ndarray]]


def batches(
    source: Source,
    *,
    global_batch: int,
    seed: int,
    transform: Transform,
    skipped: SkippedLog,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
) -> grain.DatasetIterator:
    """An endless iterator over this host's rows of the global batches, in a new order each epoch.

    Args:
        source: where records come from; `TokenStore` is one too. One that cannot be read is
            replaced by the next readable one in the source, and noted in `skipped`.
        global_batch: rows of a step over all hosts (b); `process_count` must divide it.
        seed: 0 to 2**32 - 1.
        transform: record, generator -> dict of arrays of fixed shapes. The generator depends on
            the seed and the position in the stream only.
        skipped: notes what was skipped, and stops the run if that is too much.
        start: the step whose batch comes first.
        process_index: which share of the rows is this host's: rows i*b/n to (i+1)*b/n. Hosts that
            hold the same rows of the mesh pass the same index.
        process_count: the number of such shares, n.
        threads: batches that are made at a time, ahead of the training step.

    Returns:
        An iterator of dicts of arrays [b/n, ...]; its `close()` stops the threads.

    Raises:
        InputError: the batch cannot be divided, the seed is out of range; while iterating, too
            many records were skipped.
    """
    if global_batch % process_count:
        raise InputError(
            f"global_batch={global_batch}: expected a multiple of the {process_count} hosts"
            " that share it"
        )
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}: expected 0 to {2**32 - 1}")
    stream = (
        grain.MapDataset.source(_Readable(source, skipped))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(transform)
        .batch(global_batch // process_count, drop_remainder=True)[process_index::process_count]
    )
    # Threads only: the decoders and the store release the interpreter lock, and worker processes
    # would outlive a killed run.
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(stream.to_iter_dataset(reading))
    iterator.set_state({"next_index": start})
    return iterator


class _Readable:
    """A source whose every index gives a record: its own, or the next one that can be read."""

    def __init__(self, source: Source, skipped: SkippedLog):
        self._source, self._skipped = source, skipped

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        count = len(self._source)
        for i in range(index, index + count):
            self._skipped.see(i % count)
            try:
                return self._source[i % count]
            except BadRecord as error:
                self._skipped.add(error.key, error.reason)
                self._skipped.check()
        raise InputError(f"none of the {count} records can be read; see {self._skipped.path}")
