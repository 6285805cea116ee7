"""Random views of images: a small set of images becomes a larger one before it is tokenized.

LlamaGen (arXiv 2406.06525) stores the codes of ten crops of each image; here any number of views is
stored, of random sizes. The first view of an image is the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from cogview_jax.data.records import Record
from cogview_jax.data.sources.source import Source, described, readers_of


@dataclass(frozen=True)
class RandomView:
    """A random part of an image.

    Attributes:
        smallest, largest: the part's sides are a random share of the image's, from `smallest` to
            `largest`. Of a share above 1 the image is shown whole, and the pixels of its edge go on
            around it.
        flip: mirror left and right half of the time.
        aspect: rows and columns in proportion to which the part is cut further, at a random place.
            None leaves it the image's own aspect ratio.
    """

    smallest: float = 1.0
    largest: float = 1.0
    flip: bool = False
    aspect: tuple[int, int] | None = None

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], generator: np.random.Generator
    ) -> UInt8[np.ndarray, "r c 3"]:
        """uint8 [h, w, 3] -> uint8 [r, c, 3], of any sizes; no pixel is resized."""
        share = generator.uniform(self.smallest, self.largest)
        sides = np.array(image.shape[:2])
        part = np.maximum(1, np.round(sides * share).astype(int))
        around = np.maximum(0, part - sides)
        before = [int(generator.integers(extra + 1)) for extra in around]
        padding = [(start, int(extra) - start) for start, extra in zip(before, around, strict=True)]
        image = np.pad(image, (*padding, (0, 0)), mode="edge")
        image = _random_part(image, part, generator)
        if self.aspect is not None:
            scale = min(np.divide(image.shape[:2], self.aspect))
            part = np.maximum(1, np.round(np.multiply(self.aspect, scale)).astype(int))
            image = _random_part(image, part, generator)
        return image[:, ::-1] if self.flip and generator.random() < 0.5 else image


def _random_part(
    image: np.ndarray, part: Sequence[int] | np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """So many rows and columns of the image, at a random place."""
    top, left = (
        int(generator.integers(whole - own + 1))
        for whole, own in zip(image.shape[:2], part, strict=True)
    )
    return image[top : top + part[0], left : left + part[1]]


class Views:
    """Each record of a source several times, one view after another; a source itself."""

    def __init__(self, source: Source[Record], count: int, view: RandomView, seed: int):
        """Nothing is read.

        Args:
            source: the images.
            count: views of each, of which the first is the image as it is.
            view: what the others are.
            seed: of the others, with the numbers of record and view.
        """
        self._source, self._count, self._view, self._seed = source, count, view, seed
        self.readers = readers_of(source)

    def __len__(self) -> int:
        """The number of views of all records."""
        return len(self._source) * self._count

    def key(self, i: int) -> str:
        """The name of the record, with the number of the view behind all but the first."""
        record, view = divmod(i, self._count)
        return f"{self._source.key(record)}{f' view {view}' if view else ''}"

    def __getitem__(self, i: int) -> Record:
        """Reads view `i`; raises as the source does."""
        number, view = divmod(i, self._count)
        record = self._source[number]
        if not view:
            return record
        generator = np.random.default_rng([self._seed, number, view])
        return replace(record, key=self.key(i), image=self._view(record.image, generator))

    def describe(self) -> str:
        """The description of the source, and how often each record comes."""
        return f"{described(self._source)}; {self._count} views of each"
