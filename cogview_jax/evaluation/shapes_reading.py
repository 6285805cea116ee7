"""What a picture of captioned shapes shows, read from its pixels alone.

The background is the border's colour; an object is a connected region that differs from it, and its name is that of the
outline that fits its soft coverage best. Fitting the blur as well as the place makes the reading tolerant in the way a
person is: a picture that comes back slightly blurred or faded from an image tokenizer shows what it showed before.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from cogview_jax.data.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, coverage

BACKGROUND_TOLERANCE = 30  # in any channel; white and gray are 70 apart
COLOUR_TOLERANCE = 60  # Euclidean; the nearest two, yellow and orange, are 71 apart
LEAST_COSINE = 0.94  # of an object's coverage with its outline; true drawings reach 0.99

_LARGEST = 64  # pixels a side; larger pictures are reduced, which shows nothing less
_LEAST_AREA = 0.5 * SIZES["small"][1] ** 2  # of an object: less than half a small star is a speck
_LEVELS = (0.55, 0.7, 0.85)  # of the contrast near by: where an object's core ends
_HALO = 2.5  # pixels around the core that hold an object's soft edge
_PALETTE = np.array([rgb for _, rgb in COLOURS.values()], np.float32)


@dataclasses.dataclass(frozen=True)
class Seen:
    """An object in a picture; lengths are shares of the picture, and a name is None where nothing fits."""

    x: float
    y: float
    radius: float
    colour: str | None
    shape: str | None


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a picture shows; the background is None where it is neither white nor gray."""

    background: str | None
    objects: tuple[Seen, ...]


def read(picture: np.ndarray) -> Reading:
    """Reads a picture: uint8 [size, size, 3], 32 pixels or more.

    Two objects that touch are one region, which no outline fits; then cores are cut at a higher level.
    """
    if len(picture) > _LARGEST:
        picture = np.asarray(Image.fromarray(picture).resize((_LARGEST, _LARGEST), Image.BOX))
    picture = picture.astype(np.float32)
    border = np.concatenate([picture[[0, -1]].reshape(-1, 3), picture[:, [0, -1]].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    background = next(
        (
            name
            for name, (_, rgb) in BACKGROUNDS.items()
            if np.abs(ground - rgb).max() < BACKGROUND_TOLERANCE
        ),
        None,
    )
    readings = []
    for level in _LEVELS:
        readings.append(Reading(background, _objects(picture - ground, ground, level)))
        if all(one.shape for one in readings[-1].objects):
            return readings[-1]
    return readings[0]


def _objects(difference: np.ndarray, ground: np.ndarray, level: float) -> tuple[Seen, ...]:
    """The objects in a picture that differs from its background `ground` [3] by `difference` [size, size, 3]."""
    size = len(difference)
    contrast = np.linalg.norm(difference, axis=-1)
    faint = 0.4 * np.linalg.norm(_PALETTE - ground, axis=-1).min()
    # The contrast near by counts, not the picture's: pink on gray beside black on gray is faint.
    peak = ndimage.maximum_filter(contrast, size=2 * round(size / 24) + 1)
    cores, count = ndimage.label((contrast > faint) & (contrast > level * peak), np.ones((3, 3)))
    if count == 0:
        return ()
    distance, (row, column) = ndimage.distance_transform_edt(cores == 0, return_indices=True)
    regions = np.where(distance <= _HALO, cores[row, column], 0)
    objects = []
    for label, window in enumerate(ndimage.find_objects(regions), start=1):
        own = regions[window] == label
        core = contrast[window] * (cores[window] == label)
        paint = difference[window][core >= 0.85 * core.max()].mean(axis=0)
        soft = own * (difference[window] @ paint / (paint @ paint)).clip(-0.2, 1.2)
        if soft.sum() < _LEAST_AREA * size**2 or np.linalg.norm(paint) < 1.25 * faint:
            continue  # a speck or a smudge
        fit = _fit(soft)
        # What the outline, blurred, has to be painted with: the colour before the blur.
        template = fit.template * own
        colour = np.einsum("hw,hwc->c", template, difference[window]) / (template**2).sum()
        objects.append(
            Seen(
                x=(window[1].start + fit.x) / size,
                y=(window[0].start + fit.y) / size,
                radius=fit.radius / size,
                colour=_name_colour(ground + colour),
                shape=fit.shape if fit.cosine >= LEAST_COSINE else None,
            )
        )
    return tuple(objects)


def _name_colour(rgb: np.ndarray) -> str | None:
    """The nearest colour of the table, or None if even that is far."""
    distance = np.linalg.norm(_PALETTE - rgb, axis=-1)
    nearest = distance.argmin()
    return tuple(COLOURS)[nearest] if distance[nearest] < COLOUR_TOLERANCE else None


class _Fit(NamedTuple):
    """The outline that fits an object best: lengths in pixels, template [h, w] the coverage blurred."""

    shape: str
    cosine: float
    x: float
    y: float
    radius: float
    template: np.ndarray


def _fit(soft: np.ndarray, steps: int = 3) -> _Fit:
    """Fits every outline to an object's soft coverage [h, w] and returns the best by its cosine.

    Centre and radius start where the object's centroid and area put them. Gauss-Newton steps then move strength, x, y,
    the radius's logarithm and blur, for all outlines at once. A template's derivatives are those of a picture: moving
    is its gradient, growing its gradient along the radius, blurring its Laplacian.

    Legend: s shapes, n pixels a side.
    """
    height, width = soft.shape
    n = max(soft.shape)
    soft = np.pad(soft, ((0, n - height), (0, n - width)))
    middle, area = np.arange(n) + 0.5, soft.sum()
    unit_area, unit_y = _moments()
    radius = np.sqrt(area / unit_area)
    x = np.full(len(SHAPES), soft.sum(axis=0) @ middle / area)
    y = soft.sum(axis=1) @ middle / area - unit_y * radius
    blur = np.full(len(SHAPES), 0.5)
    for step in range(steps + 1):
        template = np.stack(
            [
                ndimage.gaussian_filter(coverage(shape, n, cx / n, cy / n, r / n), b, truncate=3)
                for shape, cx, cy, r, b in zip(SHAPES, x, y, radius, blur, strict=True)
            ]
        )  # [s, n, n]
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
        blur = (blur + blurring.clip(-0.4, 0.4)).clip(0.25, 1.5)
    cosine = strength * np.sqrt(power / (soft**2).sum())
    best = cosine.argmax()
    return _Fit(
        tuple(SHAPES)[best],
        float(cosine[best]),
        float(x[best]),
        float(y[best]),
        float(radius[best]),
        template[best, :height, :width],
    )


@functools.cache
def _moments() -> tuple[np.ndarray, np.ndarray]:
    """Of each shape of radius 1: its area and the height of its centroid (y downwards), float64 [s]."""
    size, radius = 256, 0.4
    outlines = np.stack([coverage(shape, size, 0.5, 0.5, radius) for shape in SHAPES])
    rows = outlines.sum(axis=2, dtype=np.float64)
    area = rows.sum(axis=1)
    heights = ((np.arange(size) + 0.5) / size - 0.5) / radius
    return area / (radius * size) ** 2, rows @ heights / area
