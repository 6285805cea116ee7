"""The paper's Table 1: FID-k, inception score and CapLoss of the best of several candidates.

The captions are those of a file like COCO's with a folder of images, of a TensorFlow data set, of a
captioned folder, or of new captioned shapes (arXiv 2105.13290, section 4.1). Beside the model's own
row stand the paper's rows, the ceiling that its image tokenizer sets, and CapLoss of images with
wrong captions.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.evaluation.accepted_flags import (
    BLUR,
    CAPTIONED,
    CHOICE,
    DISTANCES,
    FID_NETWORKS,
    SAMPLING,
)
from cogview_jax.evaluation.benchmark import Measured, Options, Report, mean_of
from cogview_jax.evaluation.benchmarks.fid import open_extractor
from cogview_jax.evaluation.candidates import (
    CodedImages,
    Selected,
    Squares,
    best_of,
    encode_images,
    sample_asked,
)
from cogview_jax.evaluation.captioned_sets import CaptionedSet, open_captioned
from cogview_jax.evaluation.clip_sets import ClipSets
from cogview_jax.evaluation.features import FeatureExtractor
from cogview_jax.evaluation.image_sets import ImageSet, good_images, require_readable
from cogview_jax.evaluation.page import Images, Table
from cogview_jax.evaluation.scorer import CapLossScorer
from cogview_jax.evaluation.set_distances import ImageFeatures, distances
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.errors import InputError

SHARES_WORK, NEEDS_FLAGS = True, ("--rerank_with", "--features")
NEEDS_PARTS, NEEDS_TASK = EVERY_PART, "text_to_image"
TAKES = ("num_prompts", *SAMPLING, *CHOICE, *CAPTIONED, *DISTANCES, *BLUR)
FEATURES = (*FID_NETWORKS, "clip")
#: The radii of the paper.
RADII = (0, 1, 2, 4, 8)
COLUMNS = ("FID-0", "FID-1", "FID-2", "FID-4", "FID-8", "IS", "CapLoss")
#: Of MS COCO, 30,000 captions, the best of 60 by CapLoss; with another network or protocol, or on
#: other images, numbers do not compare with them.
PAPER: Mapping[str, tuple[float | None, ...]] = {
    "AttnGAN": (35.2, 44.0, 72.0, 108.0, 100.0, 23.3, 3.01),
    "DM-GAN": (26.5, 39.0, 73.0, 119.0, 112.3, 32.2, 2.87),
    "DF-GAN": (26.5, 33.8, 55.9, 91.0, 97.0, 18.7, 3.09),
    "DALL-E": (27.5, 28.0, 45.5, 83.5, 85.0, 17.9, None),
    "CogView": (27.1, 19.4, 13.9, 19.4, 23.6, 18.2, 2.43),
}
#: Images that the page shows of each kind.
SHOWN = 12


class Pool:
    """Candidates of a bundle for captions, and what the metrics of Table 1 and Figure 9 need."""

    def __init__(self, model: CogView, options: Options):
        """Samples and scores what is not on disk yet.

        Raises:
            InputError: the bundle is not of text_to_image, there is no caption bundle or network,
                or the captions cannot be read.
        """
        if not options.rerank_with:
            raise InputError("expected --rerank_with BUNDLE: the caption bundle of CapLoss")
        asked, size = options.images, model.codec.config.image_size
        self.model, self.options, self.count = model, options, options.candidates
        self.extractor: FeatureExtractor = open_extractor(asked)
        self._folder = Path(options.unfinished)
        self.scorer = CapLossScorer(options.rerank_with, options.precision, self._folder)
        self.captioned: CaptionedSet = open_captioned(
            asked.captions, asked.real, count=options.count, size=size, seed=options.seed
        )
        require_readable(self.captioned.images, "--real")
        self.scorer.check(self.captioned.texts)
        self.images: CodedImages = sample_asked(
            model, self.captioned.texts, self.count, self._folder / "candidates", options
        )
        scores = self.scorer.scores(self.images, self.captioned.texts, "candidates")
        #: CapLoss of every candidate, [captions, candidates].
        self.cap_loss = scores.reshape(-1, self.count)

    def features(self, images: ImageSet, name: str) -> ImageFeatures:
        """The features of a set; `name` is that of its folder."""
        kernel = self.options.images.blur_kernel
        return ImageFeatures(images, self.extractor, self._folder / name, kernel)

    def reconstructed(self) -> CodedImages:
        """The true images through the image tokenizer."""
        seen = Squares(self.captioned.images, self.model.codec.config.image_size)
        folder = self._folder / "reconstructed"
        options = self.options
        return encode_images(
            self.model, seen, folder, bundle=options.bundle, precision=options.precision
        )

    def settings(self) -> Report:
        """What every number depends on, beside what `distances` reports."""
        return {
            "captions": self.captioned.name,
            **self.captioned.provenance,
            "prompts": len(self.captioned.texts),
            "candidates": self.count,
            "cap_loss_by": self.scorer.sha256,
        }


def run(model: CogView, options: Options) -> Measured:
    """Samples `options.candidates` images for each of `options.count` captions, and measures them.

    Raises:
        InputError: as `Pool`.
    """
    pool = Pool(model, options)
    texts, asked = pool.captioned.texts, replace(options.images, blur=RADII)
    best = best_of(pool.cap_loss, pool.count, lowest=True)
    chosen = Selected(pool.images, best, f"the best of {pool.count} candidates")
    reconstructed = pool.reconstructed()
    real = pool.features(pool.captioned.images, "real")
    rows: dict[str, Any] = {}
    for name, images in (("best", chosen), ("ceiling", reconstructed)):
        measured = distances(real, pool.features(images, name), pool.extractor, asked, options.seed)
        rows[name] = measured
    # Each image with the caption of the next one: what a score is where nothing fits.
    wrong = [*texts[1:], texts[0]]
    cap_loss = {
        "best": pool.cap_loss.reshape(-1)[best],
        "ceiling": pool.scorer.scores(reconstructed, texts, "ceiling"),
        "wrong captions": pool.scorer.scores(chosen, wrong, "wrong_captions"),
    }
    for name, losses in cap_loss.items():
        rows.setdefault(name, {})["cap_loss"] = mean_of(losses[~np.isnan(losses)])
    if "clip" in asked.features:
        clip = ClipSets(asked.features["clip"], Path(options.unfinished))
        for name, images, captions in (
            ("best", chosen, texts),
            ("ceiling", reconstructed, texts),
            ("wrong captions", chosen, wrong),
        ):
            folder = "best" if images is chosen else name
            rows[name]["clip_score"] = clip.score(images, captions, folder) | clip.describe()
    report = pool.settings() | rows
    return Measured(report, [_paper_table(rows), *_images(pool, best)])


def table(report: Mapping[str, Any]) -> str:
    """The rows of the model and of the paper as lines for people."""
    section = _paper_table(report)
    lines = [f"{'':16}" + "".join(f"{column:>9}" for column in section.columns[1:])]
    for name, *cells in section.rows:
        shown = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        lines.append(f"{name:16}" + "".join(f"{cell:>9}" for cell in shown))
    network, n = report["best"]["features"]["name"], report["best"]["n_generated"]
    lines.append(f"this model: {network}, resize {report['best']['resize']}, N = {n}; the paper's")
    lines.append("rows are of MS COCO, N = 30,000: they compare with no other network or images")
    return "\n".join(lines)


def _paper_table(rows: Mapping[str, Any]) -> Table:
    ours: list[list[str | float | None]] = []
    for name in ("best", "ceiling", "wrong captions"):
        row = rows[name]
        fid, score = row.get("fid", {}), row.get("inception_score") or {}
        numbers = [fid.get(str(radius)) for radius in RADII]
        ours.append([name, *numbers, score.get("mean"), row["cap_loss"]["mean"]])
    theirs = [[f"{name} (paper)", *numbers] for name, numbers in PAPER.items()]
    return Table("Table 1", ("", *COLUMNS), [*ours, *theirs])


def _images(pool: Pool, best: np.ndarray) -> list[Images]:
    """The chosen images with the lowest and the highest CapLoss, and some at random."""
    losses = pool.cap_loss.reshape(-1)[best]
    order = np.argsort(losses, kind="stable")
    order = order[~np.isnan(losses[order])]
    some = np.random.default_rng(pool.options.seed).permutation(len(best))[:SHOWN]
    kinds = {"Best by CapLoss": order[:SHOWN], "Worst by CapLoss": order[::-1][:SHOWN]}
    found = []
    for title, which in (*kinds.items(), ("At random", some)):
        chosen = {int(best[i]): f"{losses[i]:.3f} {pool.captioned.texts[i]}" for i in which}
        shown = good_images(pool.images, list(chosen))
        found.append(Images(title, list(shown.values()), [chosen[i] for i in shown]))
    return found
