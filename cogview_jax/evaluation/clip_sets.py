"""CLIP embeddings of sets of images, on disk: CLIPScore, and CMMD between sets."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cogview_jax.evaluation.benchmark import Report
from cogview_jax.evaluation.clip_model import ClipModel
from cogview_jax.evaluation.image_sets import ImageSet, fill_rows
from cogview_jax.evaluation.metrics.clip_score import clip_score
from cogview_jax.evaluation.metrics.cmmd import cmmd
from cogview_jax.evaluation.row_store import RowStore


class ClipSets:
    """A CLIP and the embeddings that it gives sets of images, which are computed once."""

    def __init__(self, path: str, folder: Path):
        """Reads the model.

        Args:
            path: of the model, see `ClipModel.read`.
            folder: for the embeddings, a folder a set in it.

        Raises:
            InputError: see `ClipModel.read`.
        """
        self._clip, self._folder = ClipModel.read(path), folder
        self.dimension = self._clip.dimension

    def describe(self) -> dict[str, str]:
        """What a report says of the model."""
        return {"name": "clip", "sha256": self._clip.sha256}

    def images(self, images: ImageSet, name: str) -> Float[np.ndarray, "n d"]:
        """The embeddings of a set, of unit length; NaN where an image cannot be read.

        `name` is that of the set's folder.
        """
        job = {"set": images.identity, "clip": self._clip.sha256}
        together = self._clip.batch_size
        store = RowStore(
            self._folder / f"clip_{name}",
            job,
            count=len(images),
            width=self._clip.dimension,
            batch=together,
        )

        def compute(readable: Iterable[np.ndarray], numbers: range) -> Iterator[np.ndarray]:
            batch: list[np.ndarray] = []
            for image in readable:
                batch.append(image)
                if len(batch) == together:
                    yield self._clip.images(batch)
                    batch = []
            if batch:
                yield self._clip.images(batch)

        fill_rows(store, images, compute, f"CLIP of {name}")
        return store.read(range(store.count))

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """The embeddings of texts, of unit length."""
        return self._clip.texts(texts)

    def score(self, images: ImageSet, texts: Sequence[str], name: str) -> Report:
        """CLIPScore of a set with a text for each image, of those that can be read."""
        found = self.images(images, name)
        good = ~np.isnan(found[:, 0])
        chosen = [text for text, there in zip(texts, good, strict=True) if there]
        return asdict(clip_score(found[good], self.texts(chosen)))

    def distance(self, first: ImageSet, second: ImageSet, names: tuple[str, str]) -> Report:
        """CMMD between two sets; `names` are those of their folders."""
        sides = [self.images(*pair) for pair in zip((first, second), names, strict=True)]
        x, y = (side[~np.isnan(side[:, 0])] for side in sides)
        return asdict(cmmd(x, y))
