"""A tensor in a file, which is read when it is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cogview_jax.interop.torch_format.pickle import View


class Tensor(NamedTuple):
    """A view over bytes that are read when they are asked for.

    Attributes:
        view: its storage, type, shape and strides.
        swapped: whether the file has another order of bytes than this machine.
        data: returns the bytes of its storage, uint8 [n], at least as many as the tensor needs.
    """

    view: View
    swapped: bool
    data: Callable[[], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of the tensor."""
        return self.view.shape

    @property
    def dtype(self) -> np.dtype:
        """Returns the type of the numbers; bfloat16 is that of ml_dtypes."""
        return self.view.dtype

    def read(self) -> np.ndarray:
        """Returns the values, read-only. They are mapped from the file, unless it is compressed.

        Mapped memory goes back to the system when the array is deleted.
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
    """Returns `size` bytes of a file from byte `start` on, uint8, which are read when used."""
    if not size:
        return np.zeros(0, np.uint8)
    return np.asarray(np.memmap(path, np.uint8, "r", start, (size,)))
