"""The outlines of captioned shapes, as the share of each pixel that they cover.

Lengths are shares of the image, x to the right and y downwards.
"""

import functools

import numpy as np
from jaxtyping import Float

_CELLS = 1024  # of an outline's area table, a side
_REACH = 1.1  # half the table's side, in radii


def coverage(shape: str, size: int, x: float, y: float, radius: float) -> Float[np.ndarray, "n n"]:
    """The share of each pixel that a shape covers: float32 [size, size].

    A pixel's share is a difference of the shape's summed-area table (Crow, 1984) at the pixel's
    corners: box filtering of a fine mask at any scale and sub-pixel offset, in time that depends on
    `size` alone.
    """
    table = _area_table(shape)
    edges = np.arange(size + 1) / size

    def at(start):
        cells = ((edges - start) / radius / _REACH + 1) * (_CELLS / 2)
        cells = cells.clip(0, _CELLS)
        low = np.minimum(cells.astype(np.int32), _CELLS - 1)
        return low, (cells - low).astype(np.float32)

    (row, down), (column, right) = at(y), at(x)
    row, down = row[:, None], down[:, None]
    left, beside = (
        table[row, near] + down * (table[row + 1, near] - table[row, near])
        for near in (column, column + 1)
    )
    area = left + right * (beside - left)
    pixel = (_CELLS / 2 / _REACH / radius / size) ** 2
    return np.diff(np.diff(area, axis=0), axis=1) / np.float32(pixel)


@functools.cache
def _area_table(shape: str) -> np.ndarray:
    """How many cells above and left of each grid point lie inside: float32 [_CELLS + 1] * 2."""
    ticks = ((np.arange(_CELLS) + 0.5) / _CELLS * 2 - 1) * _REACH
    inside = _inside(shape, ticks[None, :], ticks[:, None])
    table = np.zeros((_CELLS + 1, _CELLS + 1), np.float32)  # counts below 2^24: exact
    table[1:, 1:] = inside.cumsum(0, dtype=np.int32).cumsum(1)
    return table


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie within a shape of radius 1 around the origin; x and y broadcast."""
    across = np.abs(x)
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "ring":
        return (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.55**2)
    if shape == "square":
        return np.maximum(across, np.abs(y)) <= 0.85
    if shape == "diamond":
        return across / 0.7 + np.abs(y) <= 1
    if shape == "cross":
        long, short = np.maximum(across, np.abs(y)), np.minimum(across, np.abs(y))
        return (long <= 1) & (short <= 0.33)
    if shape == "triangle":
        return (y <= 0.75) & (across / 0.95 <= (y + 1) / 1.75)
    if shape == "star":
        # All ten edges folded onto the one from (1, 0) to the inner corner at 36 degrees.
        fold = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        r = np.hypot(x, y)
        inner_x, inner_y = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
        return (r * np.cos(fold) - 1) * inner_y <= r * np.sin(fold) * (inner_x - 1)
    # heart: x = sin(t)^3, y = -(13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) / 16, as two curves over x
    t = np.arcsin(np.cbrt(np.minimum(across, 1)))
    upper, lower = (
        (13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a)) / 16
        for a in (t, np.pi - t)
    )
    return (across <= 1) & (-upper <= y) & (y <= -lower)
