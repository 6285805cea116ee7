"""Whether an image shows what its caption says: the judge of captioned shapes.

Report its shares beside the ceiling: the shares of the image tokenizer's reconstructions of true
drawings.
"""

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

from cogview_jax.shapes.reading import Reading, Seen, read
from cogview_jax.shapes.scenes import SIZES, Scene

ATTRIBUTES = ("background", "count", "position", "size", "colour", "shape")

POSITION_TOLERANCE = 0.1  # in x and in y; positions are 0.23 apart or more, and jitter by 0.03
# Of the logarithm of the radius: half way from small to large.
SIZE_TOLERANCE = float(np.log(SIZES["large"][1] / SIZES["small"][1]) / 2)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Which attributes of a scene an image shows rightly, each for every object.

    The caption fixes the image up to jitter, so position and size are judged in every kind of
    scene.
    """

    background: bool
    count: bool
    position: bool
    size: bool
    colour: bool
    shape: bool

    @property
    def all(self) -> bool:
        """Whether the image matches the caption."""
        return all(getattr(self, name) for name in ATTRIBUTES)


def judge(image: UInt8[np.ndarray, "n n 3"], scene: Scene) -> Verdict:
    """Judges an image, uint8 [size, size, 3] of 32 pixels or more, by its caption's scene."""
    return compare(read(image), scene)


def shares(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The share of images that are right, by attribute and in "all" of them."""
    verdicts = list(verdicts)
    return {
        name: float(np.mean([getattr(verdict, name) for verdict in verdicts]))
        for name in (*ATTRIBUTES, "all")
    }


def compare(reading: Reading, scene: Scene) -> Verdict:
    """Compares what an image shows with what a caption says.

    Objects are paired with the scene's in the way that makes most attributes right; of two equal
    ways, the one that names them rightly, so that two swapped objects are wrong in position. Where
    the count is wrong nobody can say which is which: the position is wrong, and colour and shape
    are right if the image shows just those of the caption.
    """
    seen, background = reading.objects, reading.background == scene.background
    if len(seen) != len(scene.objects):
        likeliest = [ways[0] for ways in seen]
        colours, shapes = ({*names} for names in zip(*scene.objects, strict=True))
        return Verdict(
            background,
            count=False,
            position=False,
            size=bool(seen) and all(_right_size(one, scene) for one in likeliest),
            colour={one.colour for one in likeliest} == colours,
            shape={one.shape for one in likeliest} == shapes,
        )
    colour, shape, size, position = max(
        (_agreement(order, scene) for order in itertools.permutations(seen)),
        key=lambda right: (sum(right), right),
    )
    return Verdict(background, True, position, size, colour, shape)


def _agreement(seen: tuple[tuple[Seen, ...], ...], scene: Scene) -> tuple[bool, bool, bool, bool]:
    """Whether colours, shapes, sizes, positions are those of a scene's objects, in this order."""
    colour = shape = size = position = True
    for ways, named, (x, y) in zip(seen, scene.objects, scene.centres, strict=True):
        one = next((way for way in ways if way.shape == named[1]), ways[0])
        colour &= one.colour == named[0]
        shape &= one.shape == named[1]
        size &= _right_size(one, scene)
        position &= bool(max(abs(one.x - x), abs(one.y - y)) < POSITION_TOLERANCE)
    return colour, shape, size, position


def _right_size(one: Seen, scene: Scene) -> bool:
    return bool(abs(np.log(one.radius / scene.radius)) < SIZE_TOLERANCE)
