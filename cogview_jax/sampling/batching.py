"""How many rows are computed at a time, in few shapes: each shape compiles once."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.bounds import MOST_ROWS, need_count
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.hardware import free_memory
from cogview_jax.runtime.mesh import to_host

#: Rows of a sampled batch where none is given and memory has room: more gain little.
BATCH = 64
#: Of the free memory, what the caches of a batch may take; the rest is for what XLA works with.
CACHE_SHARE = 0.4


def min_batch() -> int:
    """How many rows the smallest batch should have.

    Where `models.kernels.token_step` does not apply, XLA does not give products with a single row
    to a GPU's library for matrix products: two rows take less time.
    """
    return 2 if jax.default_backend() == "gpu" else 1


def fitted(count: int, batch_size: int) -> int:
    """The rows of each batch of `batches`.

    A small job takes a small batch; powers of two keep the compilations few.
    """
    return max(min(batch_size, 1 << (count - 1).bit_length()), min_batch())


def batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The indices of `count` rows in batches of one size, and how many of a batch are new.

    The last batch is filled up with earlier rows, so that it needs no compilation of its own.
    """
    batch_size = fitted(count, batch_size)
    for start in range(0, count, batch_size):
        index = np.arange(start, start + batch_size) % count
        yield index, min(batch_size, count - start)


def in_few_shapes(
    work: Callable[[np.ndarray], jax.Array], rows: np.ndarray, most: int
) -> np.ndarray:
    """`work(rows)` in batches of few sizes.

    Args:
        work: of rows [b, ...] that are independent of each other, to [b, ...].
        rows: any number of them.
        most: rows of a batch.
    """
    if not len(rows):
        return to_host(work(rows))
    done = [to_host(work(rows[index]))[:own] for index, own in batches(len(rows), most)]
    return done[0] if len(done) == 1 else np.concatenate(done)


def rows_that_fit(bytes_each: float) -> int:
    """How many rows of so many bytes free memory has room for: a power of two, 1 to `BATCH`."""
    free = free_memory(jax.local_devices()[0])
    if free is None:
        return BATCH
    fit = max(1, int(CACHE_SHARE * free / bytes_each))
    return min(BATCH, 1 << (fit.bit_length() - 1))


def batch_rows(model: Transformer, given: int | None, slots: int, count: int) -> int:
    """Rows of a batch of `model`: those `given`, or what free memory has room for.

    Args:
        model: whose key/value cache takes the memory.
        given: by the user.
        slots: of the cache, that a row takes.
        count: how many rows there are.

    Raises:
        InputError: less than one row, more than `MOST_ROWS`, or a batch whose cache alone takes
            more than all free memory.
    """
    width = np.dtype(model.policy.compute).itemsize
    row = 2 * model.config.layers * model.config.width * slots * width
    if given is None:
        return rows_that_fit(row)
    need_count("batch_size", given, MOST_ROWS)
    free = free_memory(jax.local_devices()[0])
    takes = min(given, count) * row
    if free is not None and takes > max(room := free * jax.device_count(), row):
        raise InputError(
            f"batch_size {given}: its cache takes {takes / 2**30:.0f} GiB, but"
            f" {room / 2**30:.0f} GiB are free"
        )
    return given
