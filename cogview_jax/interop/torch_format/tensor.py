"""A tensor in a file, not yet read."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cogview_jax.interop.torch_format.pickle import View


class Tensor(NamedTuple):
    """A view over bytes that are read when they are asked for.

    swapped: the file has the other order of bytes than this machine. data: gives the bytes of its
    storage, uint8 [n], at least as many as it needs.
    """

    view: View
    swapped: bool
    data: Callable[[], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.view.shape

    @property
    def dtype(self) -> np.dtype:
        """Its type; bfloat16 is that of ml_dtypes."""
        return self.view.dtype

    def read(self) -> np.ndarray:
        """Its values: read-only, and as long as nothing needs to be unpacked, mapped from the file.

        What was mapped is given back to the system once the array is forgotten.
        """
        count, itemsize = self.view.storage.size, self.dtype.itemsize
        raw = self.data()[: count * itemsize]
        if self.swapped:
            raw = raw.view(f"u{itemsize}").byteswap()
        flat = raw.view(self.dtype)[self.view.offset :]
        if not np.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        steps = [step * itemsize for step in self.view.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


def mapped(path: Path, start: int, size: int) -> np.ndarray:
    """`size` bytes of a file from `start` on, uint8, read as they are looked at."""
    if not size:
        return np.zeros(0, np.uint8)
    return np.asarray(np.memmap(path, np.uint8, "r", start, (size,)))
