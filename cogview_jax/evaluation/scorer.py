"""CapLoss of sets of images, by a caption bundle (arXiv 2105.13290, section 3.2)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cogview_jax.checkpoints.bundle import identity
from cogview_jax.data.transforms import SquareView
from cogview_jax.evaluation.candidates import score_candidates
from cogview_jax.evaluation.image_sets import ImageSet
from cogview_jax.pipeline.load import load_scorer


class CapLossScorer:
    """A caption bundle; `sha256` names its contents."""

    def __init__(self, bundle: str, precision: str, folder: Path):
        """Reads the bundle.

        Args:
            bundle: its folder.
            precision: of the arithmetic.
            folder: for the scores of sets, a folder a set in it.

        Raises:
            InputError: it is no caption bundle, or lacks a part.
        """
        self._model = load_scorer(bundle, dtype=precision)
        self.sha256, self._folder, self._precision = identity(bundle), folder, precision

    def check(self, texts: Sequence[str]) -> None:
        """InputError where a text does not fit the bundle: before anything is sampled."""
        self._model.prompts.pieces_of(texts)

    def scores(self, images: ImageSet, texts: Sequence[str], name: str) -> Float[np.ndarray, " n"]:
        """CapLoss of each image, float32 [n]; NaN where there is no image.

        Args:
            images: the set.
            texts: one for each image, or for each group of as many images.
            name: of the set, for its folder.
        """
        view = SquareView(self._model.codec.config.image_size)

        def score(pixels: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
            rng = np.random.default_rng(0)
            return self._model.score(np.stack([view(each, rng) for each in pixels]), captions)

        scorer = {"bundle": self.sha256, "precision": self._precision}
        folder = self._folder / f"cap_loss_{name}"
        return score_candidates(score, images, texts, folder, scorer, f"CapLoss of {name}")
