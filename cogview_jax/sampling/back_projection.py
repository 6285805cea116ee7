"""Iterative back-projection: large images that agree with small ones when downsampled."""

from collections.abc import Iterable

import numpy as np

from cogview_jax.models.conventions import OURS

#: Rounds of `super_resolve` unless the caller says, for all but released weights.
ROUNDS = OURS.back_projection_rounds


def back_projected(
    large: Iterable[np.ndarray], small: Iterable[np.ndarray], rounds: int
) -> list[np.ndarray]:
    """Large images, changed so that they agree with the small ones when downsampled.

    A model of codes sees an image as its codes hold it, so what it samples, downsampled, is not
    quite the image that was given. Each round upsamples the difference and adds it (Irani and Peleg
    1991, "Improving resolution by image registration"): colours and places become those of the
    small image, while what the small image cannot tell, such as where within a pixel an edge runs,
    stays as it was sampled. The difference shrinks to three quarters or less a round, before values
    are clipped to [0, 255].

    Args:
        large: uint8 [2h, 2w, 3] each.
        small: uint8 [h, w, 3] each.
        rounds: 0 changes nothing.

    Returns:
        uint8 [2h, 2w, 3] each.

    Raises:
        ValueError: there are not as many small images as large ones.
    """
    return [_one(*pair, rounds) for pair in zip(large, small, strict=True)]


def downsampled_mse(large: np.ndarray, small: np.ndarray) -> np.ndarray:
    """MSE between downsampled large images and small ones.

    large: uint8 [..., 2h, 2w, 3]. small: uint8 [..., h, w, 3]. Returns float64 [...].
    """
    return np.asarray(np.mean(np.square(_halved(large) - small), axis=(-3, -2, -1)))


def _one(large: np.ndarray, small: np.ndarray, rounds: int) -> np.ndarray:
    image = large.astype(np.float32)
    for _ in range(rounds):
        lacking = small - _halved(image)
        image += _doubled(_doubled(lacking, 0), 1)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _halved(image: np.ndarray) -> np.ndarray:
    """The mean of every 2 x 2 values: [..., 2h, 2w, 3] -> [..., h, w, 3]."""
    *before, rows, columns, colours = image.shape
    pairs = image.reshape(*before, rows // 2, 2, columns // 2, 2, colours)
    return pairs.mean(axis=(-4, -2))


def _doubled(values: np.ndarray, axis: int) -> np.ndarray:
    """Twice as many values along an axis, linearly between the centres of those there are."""
    values = np.moveaxis(values, axis, 0)
    before, after = (
        np.concatenate(pair) for pair in ((values[:1], values[:-1]), (values[1:], values[-1:]))
    )
    pairs = np.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], axis=1)
    return np.moveaxis(pairs.reshape(-1, *values.shape[1:]), 0, axis)
