"""What an image of captioned shapes shows, read from its pixels alone.

The background is the border's colour; an object is a connected region that differs from it, and its
name is that of the outline that fits its soft coverage best. Fitting the blur as well as the place
makes the reading tolerant in the way a person is: an image that comes back slightly blurred or
faded from an image tokenizer shows what it showed before.
"""

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage

from cogview_jax.shapes.outline_fit import fit_outlines
from cogview_jax.shapes.scenes import BACKGROUNDS, COLOURS, SIZES

BACKGROUND_TOLERANCE = 30  # in any channel; white and gray are 70 apart
COLOUR_TOLERANCE = 60  # Euclidean; the nearest two, yellow and orange, are 71 apart
LEAST_COSINE = 0.92  # of an object's coverage with its outline; true drawings reach 0.99
AMBIGUITY = 0.005  # of the cosine; true drawings fit any other outline worse by 0.02 or more

_LARGEST = 64  # pixels a side; larger images are reduced, which shows nothing less
_LEAST_AREA = 0.5 * SIZES["small"][1] ** 2  # of an object: less than half a small star is a speck
_LEVELS = (0.55, 0.7, 0.85)  # of the contrast near by: where an object's core ends
_HALO = 2.5  # pixels around the core that hold an object's soft edge
_PALETTE = np.array([rgb for _, rgb in COLOURS.values()], np.float32)


@dataclasses.dataclass(frozen=True)
class Seen:
    """An object as it may be seen: lengths as shares of the image, None where no name fits."""

    x: float
    y: float
    radius: float
    colour: str | None
    shape: str | None


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an image shows.

    The background is None where it is neither white nor gray. Each object comes as all the ways in
    which it may be seen, the likeliest first: a blurred star of few pixels may be a circle too.
    """

    background: str | None
    objects: tuple[tuple[Seen, ...], ...]


def read(image: UInt8[np.ndarray, "n n 3"]) -> Reading:
    """Reads an image: uint8 [size, size, 3], 32 pixels or more.

    Two objects that touch are one region, which no outline fits; then cores are cut at a higher
    level.
    """
    if len(image) > _LARGEST:
        image = np.asarray(
            Image.fromarray(image).resize((_LARGEST, _LARGEST), Image.Resampling.BOX)
        )
    image = image.astype(np.float32)
    border = np.concatenate([image[[0, -1]].reshape(-1, 3), image[:, [0, -1]].reshape(-1, 3)])
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
        readings.append(Reading(background, _objects(image - ground, ground, level)))
        if all(ways[0].shape for ways in readings[-1].objects):
            return readings[-1]
    return readings[0]


def _objects(
    difference: np.ndarray, ground: np.ndarray, level: float
) -> tuple[tuple[Seen, ...], ...]:
    """The objects of an image, given its background and its difference from it.

    difference: float32 [size, size, 3]; ground: RGB [3]; level: see `_LEVELS`.
    """
    size = len(difference)
    contrast = np.linalg.norm(difference, axis=-1)
    faintest = np.linalg.norm(_PALETTE - ground, axis=-1).min()
    # The contrast near by counts, not the image's: pink on gray beside black on gray is faint.
    peak = ndimage.maximum_filter(contrast, size=2 * round(size / 24) + 1)
    cores, count = ndimage.label(
        (contrast > 0.4 * faintest) & (contrast > level * peak), np.ones((3, 3))
    )
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
        if soft.sum() < _LEAST_AREA * size**2:
            continue  # a speck
        fits = fit_outlines(soft)
        ways = tuple(
            Seen(
                x=(window[1].start + fit.x) / size,
                y=(window[0].start + fit.y) / size,
                radius=fit.radius / size,
                colour=_name_colour(ground + _paint(fit.template * own, difference[window])),
                shape=fit.shape if fit.cosine >= LEAST_COSINE else None,
            )
            for fit in fits
            if fit.cosine >= fits[0].cosine - AMBIGUITY
        )
        if ways[0].colour is None and np.linalg.norm(paint) < 0.8 * faintest:
            continue  # a smudge
        objects.append(ways)
    return tuple(objects)


def _paint(template: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """What to paint a blurred outline [h, w] with to get [h, w, 3]: its colour before the blur."""
    return np.einsum("hw,hwc->c", template, difference) / (template**2).sum()


def _name_colour(rgb: np.ndarray) -> str | None:
    """The nearest colour of the table, or None if even that is far."""
    distance = np.linalg.norm(_PALETTE - rgb, axis=-1)
    nearest = distance.argmin()
    return tuple(COLOURS)[nearest] if distance[nearest] < COLOUR_TOLERANCE else None
