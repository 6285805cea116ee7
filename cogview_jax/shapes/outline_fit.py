"""The outlines of captioned shapes laid on an object of an image, blur and all."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cogview_jax.shapes.outlines import coverage
from cogview_jax.shapes.scenes import SHAPES

#: The widest blur that is fitted, and how far it reaches: deviations in pixels.
MOST_BLUR = 1.5
_TAPS = int(3 * MOST_BLUR + 0.5)


class Fit(NamedTuple):
    """An outline laid on an object: lengths in pixels, template [h, w] its coverage, blurred."""

    shape: str
    cosine: float
    x: float
    y: float
    radius: float
    template: np.ndarray


def fit_outlines(soft: Float[np.ndarray, "h w"], steps: int = 3) -> list[Fit]:
    """Fits every outline to an object's soft coverage [h, w]; the best, by cosine, comes first.

    Centre and radius start where the object's centroid and area put them. Gauss-Newton steps then
    move strength, x, y, the radius's logarithm and blur, for all outlines at once. A template's
    derivatives are those of an image: moving is its gradient, growing its gradient along the
    radius, blurring its Laplacian.

    Legend: s shapes, n pixels a side.
    """
    height, width = soft.shape
    n = max(soft.shape)
    soft = np.pad(soft, ((0, n - height), (0, n - width)))
    middle, area = np.arange(n) + 0.5, soft.sum()
    unit_area, unit_y = _moments()
    # Soft coverage may be negative, so the centroid of a ragged object may lie far outside of it.
    radius = np.sqrt(area / unit_area).clip(1, n)
    x = np.full(len(SHAPES), soft.sum(axis=0) @ middle / area).clip(0, n)
    y = (soft.sum(axis=1) @ middle / area - unit_y * radius).clip(0, n)
    blur = np.full(len(SHAPES), 0.5)
    for step in range(steps + 1):
        places = zip(SHAPES, x / n, y / n, radius / n, strict=True)
        sharp = np.stack([coverage(shape, n, *place) for shape, *place in places])
        spread = _blurring(blur, n)
        template = spread @ sharp @ spread.transpose(0, 2, 1)  # [s, n, n]
        power = (template**2).sum(axis=(1, 2))
        strength = np.einsum("shw,hw->s", template, soft) / power
        if step == steps:
            break
        faded = strength[:, None, None] * template
        down, right = np.gradient(faded, axis=(1, 2))
        grown = (middle - x[:, None])[:, None] * right + (middle - y[:, None])[:, :, None] * down
        laplacian = np.gradient(down, axis=1) + np.gradient(right, axis=2)
        slopes = np.stack(
            [template, -right, -down, -grown, blur[:, None, None] * laplacian], axis=1
        ).reshape(len(SHAPES), 5, -1)
        normal = slopes @ slopes.transpose(0, 2, 1)
        normal += np.eye(5) * (1e-3 * normal + 1e-4)  # Levenberg-Marquardt
        residual = (soft - faded).reshape(len(SHAPES), -1, 1)
        _, dx, dy, growth, blurring = np.linalg.solve(normal, slopes @ residual)[:, :, 0].T
        x = (x + dx.clip(-1, 1)).clip(0, n)
        y = (y + dy.clip(-1, 1)).clip(0, n)
        radius = (radius * np.exp(growth.clip(-0.15, 0.15))).clip(1, n)
        blur = (blur + blurring.clip(-0.4, 0.4)).clip(0.25, MOST_BLUR)
    cosine = strength * np.sqrt(power / (soft**2).sum())
    template = template[:, :height, :width]
    fits = map(Fit, SHAPES, cosine, x, y, radius, template)
    return sorted(fits, key=lambda fit: fit.cosine, reverse=True)


def _blurring(blur: Float[np.ndarray, " s"], n: int) -> Float[np.ndarray, "s n n"]:
    """Matrices that blur n pixels in a row: Gaussians of these deviations, cut at three of them.

    Beyond the edge the row is mirrored, its last pixel twice.
    """
    taps = np.arange(-_TAPS, _TAPS + 1)
    weights = np.exp(-0.5 * (taps / blur[:, None]) ** 2)
    weights *= np.abs(taps) <= (3 * blur[:, None] + 0.5).astype(int)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("st,tij->sij", weights, _shifts(n))


@functools.cache
def _shifts(n: int) -> Float[np.ndarray, "t n n"]:
    """Matrices that shift n pixels by -_TAPS to _TAPS, mirrored at both edges."""
    places = np.arange(n) + np.arange(-_TAPS, _TAPS + 1)[:, None]
    places %= 2 * n
    return np.eye(n)[np.minimum(places, 2 * n - 1 - places)]


@functools.cache
def _moments() -> tuple[np.ndarray, np.ndarray]:
    """Of each shape of radius 1: its area and its centroid's y, float64 [s]."""
    size, radius = 256, 0.4
    outlines = np.stack([coverage(shape, size, 0.5, 0.5, radius) for shape in SHAPES])
    rows = outlines.sum(axis=2, dtype=np.float64)
    area = rows.sum(axis=1)
    heights = ((np.arange(size) + 0.5) / size - 0.5) / radius
    return area / (radius * size) ** 2, rows @ heights / area
