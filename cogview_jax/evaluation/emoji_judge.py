"""What an image of the embedded emoji shows: the nearest class mean of features.

Classes are the concepts and the styles of `data.emoji_set`, and their means are those of its true
images; there may be one more style, whose mean is that of a set of images. Features are a
network's, or without one the image's own pixels, which tell less: the judge knows its own error
(`EmojiJudge.own_error`).

Legend: n images, c concepts, s styles, d numbers per image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from cogview_jax.data import emoji_set
from cogview_jax.evaluation.captioned_sets import ArrayImages
from cogview_jax.evaluation.features import FeatureExtractor
from cogview_jax.evaluation.image_sets import ImageSet, good_images
from cogview_jax.evaluation.set_distances import ImageFeatures

#: Rows and columns of an image whose pixels are its features.
THUMBNAIL = 16


class Judged(NamedTuple):
    """What images show: numbers of concepts and of styles, each [n]."""

    concepts: Int[np.ndarray, " n"]
    styles: Int[np.ndarray, " n"]


class EmojiJudge:
    """The nearest class mean, of features of length 1.

    A style is that with the nearest mean. A concept is that whose direction from the mean of the
    image's style is nearest, by the cosine, to the image's own: what a style does to all concepts
    alike says nothing of which one it is.
    """

    def __init__(
        self,
        size: int,
        extractor: FeatureExtractor | None,
        folder: Path,
        new_style: ImageSet | None = None,
        seen_as: Callable[[ImageSet, str], ImageSet] = lambda images, name: images,
    ):
        """Computes the means of the true images.

        Args:
            size: rows and columns of the images that will be judged. The true ones are averaged to
                them first.
            extractor: the network, or None for pixels.
            folder: for the features of sets, a folder a set in it.
            new_style: images of a style that is none of the embedded ones, whose number follows
                theirs. It says nothing of how concepts look.
            seen_as: what a set of true images, whose name follows, is seen as: images that come out
                of an image tokenizer are nearer to others that do.
        """
        self._extractor, self._folder = extractor, folder
        numbers = range(len(emoji_set.concepts())), range(len(emoji_set.STYLES))
        tiles = [
            emoji_set.tile(concept, style, size) for concept in numbers[0] for style in numbers[1]
        ]
        images = seen_as(ArrayImages(np.stack(tiles), "true images"), "true")
        true = self.features(images, "true")
        self._true = true.reshape(*map(len, numbers), -1)
        own = self._true.mean(axis=0)
        self._directions = _unit(_unit(self._true - own).mean(axis=1))
        self._styles = own
        if new_style is not None:
            new = self.features(seen_as(new_style, "new_style"), "new_style")
            self._styles = np.concatenate([own, new.mean(axis=0, keepdims=True)])

    def describe(self) -> dict[str, str]:
        """What a report says of the features: a name, and the hash of a network's weights."""
        return self._extractor.describe() if self._extractor else {"name": "pixels"}

    def of(self, images: ImageSet, name: str) -> ImageFeatures:
        """The network's features of a set, as distances of sets take them."""
        assert self._extractor is not None
        return ImageFeatures(images, self._extractor, self._folder / f"features_{name}")

    def features(self, images: ImageSet, name: str) -> Float[np.ndarray, "n d"]:
        """Features of length 1 of images that can all be read; `name` is of the set's folder."""
        if self._extractor is not None:
            found = self.of(images, name).features(0).pooled[:]
        else:
            found = np.stack(
                [_thumbnail(image) for image in good_images(images, range(len(images))).values()]
            )
        return _unit(found)

    def __call__(self, features: Float[np.ndarray, "n d"]) -> Judged:
        """Judges images by their features, which have length 1."""
        styles = np.argmin(_squared_distances(features, self._styles), axis=1)
        own = _unit(features - self._styles[styles])
        concepts = np.argmax(own @ self._directions.T, axis=1)
        return Judged(concepts, styles)

    def own_error(self) -> dict[str, float]:
        """Shares of true images that are judged wrong by means that they took no part in.

        Of a style's mean all images of the concept are left out, of a concept's the image itself.
        """
        true, (concepts, styles) = self._true, self._true.shape[:2]
        means, wrong = true.mean(axis=0), np.zeros(2)
        directions = _unit(true - means)
        sums = directions.sum(axis=1)
        for concept in range(concepts):
            others = (true.sum(axis=0) - true[concept]) / (concepts - 1)
            judged = np.argmin(_squared_distances(true[concept], others), axis=1)
            for style in range(styles):
                left = sums.copy()
                left[concept] -= directions[concept, style]
                similar = _unit(left) @ (true[concept, style] - means[judged[style]])
                wrong += np.argmax(similar) != concept, judged[style] != style
        return dict(zip(("concept", "style"), (wrong / (concepts * styles)).tolist(), strict=True))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """How far the pixels of a small copy are from white, in one row."""
    small = Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return 255 - np.asarray(small, np.float32).reshape(-1)


def _unit(rows: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Rows scaled to length 1; a row of zeros stays as it is."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _squared_distances(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    return (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
