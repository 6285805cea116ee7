"""Windows of images that are codes: the same place in every size of an image.

Super-resolution is trained on parts of images (CogView: crops of 256 pixels, and the same crops at
128), because it is applied to windows too (`sampling.super_resolution`). Codes are cut, not pixels,
so that codes at the edge of a window depend on what lies behind it, as in a whole image.
"""

import itertools
from collections.abc import Sequence

import numpy as np


def code_grids(codes: np.ndarray, sides: Sequence[int]) -> list[np.ndarray]:
    """The codes of an image in several sizes, in a row: int [n] -> [side, side] each."""
    ends = itertools.accumulate(side**2 for side in sides)
    pieces = np.split(codes, list(ends)[:-1])
    return [piece.reshape(side, side) for piece, side in zip(pieces, sides, strict=True)]


def random_window(
    grids: Sequence[np.ndarray], sides: Sequence[int], generator: np.random.Generator
) -> list[np.ndarray]:
    """One place of an image at random, out of each of its sizes.

    Args:
        grids: square codes, each a multiple of the smallest.
        sides: rows and columns of the window in each, in the proportion of the grids. Where they
            are the grids' own nothing is drawn.
        generator: of the place, which is a whole cell of the smallest grid.

    Returns:
        int [side, side] each.
    """
    smallest = min(range(len(grids)), key=lambda i: len(grids[i]))
    room = len(grids[smallest]) - sides[smallest]
    if not room:
        return list(grids)
    top, left = generator.integers(room + 1, size=2)
    windows = []
    for grid, side in zip(grids, sides, strict=True):
        scale = len(grid) // len(grids[smallest])
        rows = slice(scale * top, scale * top + side)
        windows.append(grid[rows, scale * left : scale * left + side])
    return windows
