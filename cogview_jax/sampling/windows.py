"""The plan of super-resolution: which windows are upsampled in which order.

CogView (arXiv 2105.13290), section 3.1. A grid of codes is upsampled to twice its size through
overlapping square windows, since the model has learned pairs of one window's size only. The order
is centre-continuous: every window but the first continues what its neighbours have filled, and the
middle of the image comes early. A window's target is a rectangle from its own top left corner,
twice as wide as the window and often less than twice as high, so that the rows at its lower edge
are left to the window that sees more of what is below.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.vocabulary import Vocabulary

#: The release's windows (row, column, target rows), in its order.
ORDER = (
    *((0, 0, 18), (0, 1, 30), (0, 2, 30), (1, 1, 30), (1, 0, 30), (1, 2, 30)),
    *((2, 0, 32), (2, 1, 32), (2, 2, 32)),
)


@dataclass(frozen=True)
class Window:
    """One step of the plan.

    Attributes:
        source: the rectangle that is read: slices of rows and columns of the source grid.
        target: the rectangle that is filled, of a grid twice as large.
        known: bool [rows, columns] of `target`: filled by earlier windows, so given and not
            generated.
    """

    source: tuple[slice, slice]
    target: tuple[slice, slice]
    known: np.ndarray

    @property
    def leading(self) -> int:
        """Given cells before the first generated one, in raster order."""
        return int(self.known.argmin())

    def pixels(self, each: int) -> tuple[slice, slice]:
        """The rectangle of the source's image, `each` pixels a code, that `target` stands for."""
        rows, columns = (slice(s.start * each // 2, s.stop * each // 2) for s in self.target)
        return rows, columns


@dataclass(frozen=True)
class WindowPlan:
    """Windows over a source grid; the defaults are the release's, 32x32 codes to 64x64.

    Attributes:
        grid: rows and columns of the source.
        window: rows and columns of a window.
        stride: source cells between neighbouring windows.
        order: (row, column, target rows) of each window, row and column counted in strides.
    """

    grid: int = 32
    window: int = 16
    stride: int = 8
    order: tuple[tuple[int, int, int], ...] = ORDER

    def __post_init__(self) -> None:
        """Refuses windows outside the grid, and a plan that leaves cells of the target open."""
        for row, column, rows in self.order:
            last = max(row, column) * self.stride + self.window
            if min(row, column) < 0 or last > self.grid or not 0 < rows <= 2 * self.window:
                raise InputError(
                    f"window {(row, column, rows)}: expected windows of {self.window} within a grid"
                    f" of {self.grid} at stride {self.stride}, and 1 to {2 * self.window} rows"
                )
        _, filled = self._walk
        if not filled.all():
            raise InputError(f"the plan leaves {filled.size - filled.sum()} target cells open")

    @classmethod
    def of(cls, grid: int, window: int) -> "WindowPlan":
        """The plan for grids of `grid` codes a side with a model of windows of `window`.

        One window where it holds the whole image; nine in the release's order where the image
        is twice as large. Of those the first goes a source row beyond its half, as the release's
        does, and others with windows below stop a source row before their end. InputError for other
        sizes.
        """
        if grid == window:
            return cls(grid, window, window, ((0, 0, 2 * window),))
        nine = in_nine(window)
        if grid != 2 * window or not nine:
            raise InputError(
                f"images of {grid} x {grid} codes cannot be upsampled in windows of {window} x"
                f" {window}: expected {window}" + (f" or {2 * window}" if nine else "") + " a side"
            )
        rows = {18: window + 2, 30: 2 * window - 2, 32: 2 * window}
        order = tuple((row, column, rows[released]) for row, column, released in ORDER)
        return cls(grid, window, window // 2, order)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The steps, in order."""
        return self._walk[0]

    @cached_property
    def _walk(self) -> tuple[tuple[Window, ...], np.ndarray]:
        """The windows, and which target cells they have filled in the end."""
        filled = np.zeros((2 * self.grid, 2 * self.grid), bool)
        windows = []
        for row, column, rows in self.order:
            top, left = row * self.stride, column * self.stride
            source = slice(top, top + self.window), slice(left, left + self.window)
            target = (
                slice(2 * top, 2 * top + rows),
                slice(2 * left, 2 * (left + self.window)),
            )
            windows.append(Window(source, target, filled[target].copy()))
            filled[target] = True
        return tuple(windows), filled


def in_nine(window: int) -> bool:
    """Whether windows of this side can upsample an image twice as wide, overlapping by half."""
    return window >= 4 and window % 2 == 0


def released_head(
    prompt: Sequence[int] | np.ndarray, source: np.ndarray, size: str, vocabulary: Vocabulary
) -> np.ndarray:
    """What stands before a window's target for the released weights: int32 [n].

    prompt, the window's source codes, [EOI1] [ROI2] [POS0] [size] [BOI2]. [POS0] stands for every
    window alike.

    Args:
        prompt: ids up to and with [BOI1]: [ROI1] text [size] [BOI1].
        source: int [cells], the codes that the window reads.
        size: the command for the size of the whole source.
        vocabulary: where the ids of commands lie.
    """
    middle = [vocabulary.command(name) for name in ("EOI1", "ROI2", "POS0", size, "BOI2")]
    return np.concatenate([np.asarray(part, np.int32) for part in (prompt, source, middle)])
