"""Scenes that no training has seen: what models of captioned shapes are asked for in evaluation."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from cogview_jax.shapes.scenes import SPLITS, Scene, caption, draw, sample_scene

LANGUAGES = ("en", "zh")
#: What the fresh scenes of each split are called in a report.
NAMES = {"train": "seen", "held_out": "held_out"}


@dataclass(frozen=True)
class FreshScenes:
    """Scenes of one split, half of them to be asked for in each language.

    Attributes:
        name: "seen" or "held_out", of the pairs of colour and shape.
        scenes: what is to be shown.
        languages: of each scene's text.
    """

    name: str
    scenes: tuple[Scene, ...]
    languages: tuple[str, ...]
    _rng: np.random.Generator

    @property
    def texts(self) -> list[str]:
        """What the scenes are in words."""
        pairs = zip(self.scenes, self.languages, strict=True)
        return [caption(scene, tongue) for scene, tongue in pairs]

    def drawings(self, size: int) -> UInt8[np.ndarray, "b n n 3"]:
        """True drawings of the scenes, uint8 [n, size, size, 3]: the same at every size."""
        rng = copy.deepcopy(self._rng)
        return np.stack([draw(scene, size, rng) for scene in self.scenes])


def fresh_scenes(count: int, seed: int) -> Iterator[FreshScenes]:
    """`count` scenes of seen pairs of colour and shape, and as many of held-out ones."""
    for number, split in enumerate(SPLITS):
        # Training draws from [seed, split, index]; a third number of another kind keeps apart.
        rng = np.random.default_rng([seed, number, 0, 1])
        scenes = tuple(sample_scene(rng, held_out=split == "held_out") for _ in range(count))
        languages = tuple(LANGUAGES[i % len(LANGUAGES)] for i in range(count))
        yield FreshScenes(NAMES[split], scenes, languages, rng)
