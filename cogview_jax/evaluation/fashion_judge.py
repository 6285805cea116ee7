"""What a picture of Fashion-MNIST shows: its class by a linear classifier, the rest by rules.

The classifier is least squares on gradient histograms (Dalal and Triggs 2005) and on a smaller copy
of the picture, learned anew from labelled pictures: a few seconds, the same result each time. Tone
and shape are those of `data.fashion_set`, by which the captions were made.

Legend: n pictures, d numbers a picture, c classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from cogview_jax.data.fashion_set import CLASSES, shape_of, tone_of

#: Rows and columns at which pictures are looked at; those of a cell of the histograms; directions
#: of a gradient that are told apart; and those of a pixel of the smaller copy.
SIDE, CELL, DIRECTIONS, REDUCED = 32, 4, 8, 2
#: Of least squares: the penalty on weights, as a share of the mean square of the features.
PENALTY = 0.01
#: Pictures whose features are computed together.
_TOGETHER = 1024


class Judged(NamedTuple):
    """What pictures show, as `fashion_set.Shown` says it of one: numbers, each [n]."""

    labels: Int[np.ndarray, " n"]
    tones: Int[np.ndarray, " n"]
    shapes: Int[np.ndarray, " n"]


class FashionJudge:
    """Says what pictures show, after it has seen labelled ones."""

    def __init__(
        self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]], labels: Int[np.ndarray, " n"]
    ):
        """Learns the classes.

        Args:
            pictures: true ones.
            labels: their classes, places in CLASSES.
        """
        found = features(pictures)
        self._mean = found.mean(axis=0)
        centred = found - self._mean
        moments = centred.T @ centred
        targets = np.eye(len(CLASSES))[labels] - 1 / len(CLASSES)
        penalty = PENALTY * max(float(np.trace(moments)) / len(moments), 1e-6)
        penalised = moments + penalty * np.eye(len(moments))
        self._weights = np.linalg.solve(penalised, centred.T @ targets)
        #: How many pictures it has learned from.
        self.learned_from = len(labels)

    def __call__(self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Judged:
        """Judges pictures of any sizes."""
        scores = (features(pictures) - self._mean) @ self._weights
        tones, shapes = ([rule(each) for each in pictures] for rule in (tone_of, shape_of))
        return Judged(np.argmax(scores, axis=1), np.array(tones), np.array(shapes))


def features(pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n d"]:
    """What the classifier sees of pictures of any sizes, float64."""
    starts = range(0, len(pictures), _TOGETHER)
    return np.concatenate([_features(pictures[at : at + _TOGETHER]) for at in starts])


def _features(pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n d"]:
    grey = np.stack([_grey(picture) for picture in pictures])
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    right[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    # An edge has one direction, whichever of its sides is the darker one.
    turns = np.arctan2(down, right) / np.pi % 1
    bins = np.minimum((turns * DIRECTIONS).astype(int), DIRECTIONS - 1)
    length = np.hypot(down, right)
    histograms = [_means(length * (bins == direction), CELL) for direction in range(DIRECTIONS)]
    # Square roots: a strong edge counts for more than a weak one, but not for all of them.
    return np.concatenate([_means(grey, REDUCED), *map(np.sqrt, histograms)], axis=1)


def _grey(picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "side side"]:
    """How far a picture's pixels are from white, 0 to 1, at the size that is looked at."""
    image = Image.fromarray(picture)
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return 1 - np.asarray(image, np.float64).mean(axis=2) / 255


def _means(grey: Float[np.ndarray, "n side side"], cell: int) -> Float[np.ndarray, "n cells"]:
    """The means of squares of `cell` x `cell` pixels, row by row."""
    cells = SIDE // cell
    return grey.reshape(-1, cells, cell, cells, cell).mean(axis=(2, 4)).reshape(len(grey), -1)
