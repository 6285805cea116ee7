"""What every metric asks of the features that it is given.

Legend: n images, d numbers per image.
"""

import abc
from collections.abc import Iterator
from typing import overload

import numpy as np
from jaxtyping import Array, Float, Float64, Int

from cogview_jax.runtime.errors import InputError

#: Rows that are looked at, or converted to float64, at a time.
CHUNK = 4096


class Rows(abc.ABC):
    """Features that lie elsewhere, such as on disk, and are read some rows at a time."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """Images, and numbers per image."""

    @abc.abstractmethod
    def __getitem__(self, rows: slice | Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """Some rows, as an array."""

    def __len__(self) -> int:
        """Images."""
        return self.shape[0]


@overload
def check_features(features: Rows, what: str = ..., least: int = ...) -> Rows: ...


@overload
def check_features(
    features: Float[Array | np.ndarray, "n d"], what: str = ..., least: int = ...
) -> Float[np.ndarray, "n d"]: ...


@overload
def check_features(
    features: Float[Array | np.ndarray, "n d"] | Rows, what: str = ..., least: int = ...
) -> Float[np.ndarray, "n d"] | Rows: ...


def check_features(
    features: Float[Array | np.ndarray, "n d"] | Rows, what: str = "features", least: int = 1
) -> Float[np.ndarray, "n d"] | Rows:
    """Returns the features as a NumPy array of the same type, without a copy where possible.

    `Rows` stay what they are, and are read once.

    Args:
        features: one row per image.
        what: they are, for messages.
        least: the fewest rows that are enough.

    Raises:
        InputError: the array has another form, too few rows, or a value that is not finite.
    """
    array = features if isinstance(features, Rows) else np.asarray(features)
    if len(array.shape) != 2 or array.shape[1] == 0:
        raise InputError(f"{what}: expected an array [images, dimensions], got {array.shape}")
    if len(array) < least:
        raise InputError(f"{what}: {len(array)} images, expected at least {least}")
    for start in range(0, len(array), CHUNK):
        finite = np.isfinite(array[start : start + CHUNK]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise InputError(f"{what}: row {row} (of {len(array)}, from 0) has NaN or infinity")
    return array


def chunks(features: Float[np.ndarray, "n d"] | Rows) -> Iterator[Float64[np.ndarray, "c d"]]:
    """Gives the rows in order as float64, at most `CHUNK` at a time."""
    for start in range(0, len(features), CHUNK):
        yield np.asarray(features[start : start + CHUNK], np.float64)
