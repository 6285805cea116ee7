"""What every metric asks of the features that it is given.

Legend: n images, d numbers per image.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Float, Float64

from cogview_jax.runtime.errors import InputError

#: Rows that are looked at, or converted to float64, at a time.
CHUNK = 4096


def check_features(
    features: Float[Array | np.ndarray, "n d"], what: str = "features", least: int = 1
) -> Float[np.ndarray, "n d"]:
    """Returns the features as a NumPy array of the same type, without a copy where possible.

    Args:
        features: one row per image.
        what: they are, for messages.
        least: the fewest rows that are enough.

    Raises:
        InputError: the array has another form, too few rows, or a value that is not finite.
    """
    array = np.asarray(features)
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{what}: expected an array [images, dimensions], got {array.shape}")
    if len(array) < least:
        raise InputError(f"{what}: {len(array)} images, expected at least {least}")
    for start in range(0, len(array), CHUNK):
        finite = np.isfinite(array[start : start + CHUNK]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise InputError(f"{what}: row {row} (of {len(array)}, from 0) has NaN or infinity")
    return array


def chunks(features: Float[np.ndarray, "n d"]) -> Iterator[Float64[np.ndarray, "c d"]]:
    """Gives the rows in order as float64, at most `CHUNK` at a time."""
    for start in range(0, len(features), CHUNK):
        yield np.asarray(features[start : start + CHUNK], np.float64)
