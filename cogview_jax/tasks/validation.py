"""Measures an image tokenizer on held-out images.

Legend: b images of a batch, h w rows and columns of pixels, K codes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.data.held_out_batches import HeldOutBatches, batches_of_parts, with_parts
from cogview_jax.data.records import Record
from cogview_jax.data.sources.mixture import Part
from cogview_jax.data.sources.source import Source
from cogview_jax.data.transforms import SquareView
from cogview_jax.evaluation.reconstruction import image_values, pair_metrics, use_of
from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.models.networks.lpips import LpipsWeights
from cogview_jax.runtime.mesh import to_host
from cogview_jax.runtime.paths import named_by
from cogview_jax.tasks.experiment import CodecExperiment
from cogview_jax.tokenizers.codecs.codec import decode_codes, encode_images
from cogview_jax.training.codec_loss import VQGANLoss
from cogview_jax.training.objective import ModelValues, Objective
from cogview_jax.training.state import TrainState

#: Metrics of which a higher value is better.
HIGHER_IS_BETTER = frozenset(
    {
        *("psnr", "codebook_usage", "perplexity"),
        *("validation_psnr", "validation_ssim", "validation_usage", "validation_perplexity"),
    }
)


def higher_is_better(metric: str) -> bool:
    """Whether a metric is one of `HIGHER_IS_BETTER`, or that of a part of a mixture."""
    return metric.partition("/")[0] in HIGHER_IS_BETTER


def image_metrics(experiment: CodecExperiment) -> list[str]:
    """The names of what `ImageValidation` measures, in order; known without any data.

    Those of the parts of a mixture come last, as "validation_l2/PART".
    """
    return with_parts(_metrics(experiment), experiment.data.parts)


def _metrics(experiment: CodecExperiment) -> list[str]:
    optional = ["lpips"] if any(_lpips_files(experiment).values()) else []
    names = ["l2", "psnr", "ssim", *optional, "usage", "perplexity"]
    return [f"validation_{name}" for name in names]


def _lpips_files(experiment: CodecExperiment) -> dict[str, str]:
    """The settings that may name the weights of LPIPS, the preferred one first."""
    loss, files = experiment.loss, {"train.validation_lpips": experiment.train.validation_lpips}
    if isinstance(loss, VQGANLoss):
        files["loss.perceptual"] = loss.perceptual
    return files


class ImageValidation:
    """The first readable held-out images, their centres at the size of training, and measures.

    All metrics are of the decoded images as they would be saved: encoded in float32 without noise,
    decoded, clipped and rounded to 8 bits. They do not depend on the size of a batch.

    validation_l2 is the mean squared error of pixels in [0, 1]. validation_psnr, validation_ssim
    and validation_lpips are means over images of what `evaluation.image_quality` and
    `models.networks.lpips` define. validation_usage is the share of the codes that any of the
    images uses, and validation_perplexity that of all their codes.

    Of a mixture the images are as many of each part as its share of the rows asks for, as far as it
    has as many, and validation_l2/PART, ... are measured of those of a part.
    """

    def __init__(
        self, experiment: CodecExperiment, objective: Objective[Any], held_out: Source[Record]
    ) -> None:
        """Reads the weights of LPIPS, and images until one can be used.

        Args:
            experiment: whose image tokenizer is measured, and how.
            objective: tells what of a state the image tokenizer is.
            held_out: the held-out images.

        Raises:
            InputError: the weights cannot be read, no image can, or images are too small.
        """
        config, self._model = experiment.train, experiment.model
        self._objective, self.every = objective, config.validate_every
        files, self._names = _lpips_files(experiment), _metrics(experiment)
        setting, file = next(((name, file) for name, file in files.items() if file), ("", ""))
        with named_by(setting, file):
            self._lpips = read_lpips(file) if file else None
        empty = " and ".join(files) + (" are" if len(files) > 1 else " is")
        self._distance = f"LPIPS is not measured, since {empty} empty"
        if self._lpips is not None:
            self._distance = f"LPIPS by {self._lpips.network} ({setting} = {file})"
        size = self._model.image_size
        image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
        jax.eval_shape(pair_metrics, self._lpips, image, image)  # refuses images that are too small
        view = SquareView(size, crop=experiment.data.crop).still()

        def batches(part: Part[Record], count: int, of: str) -> HeldOutBatches[Record]:
            return HeldOutBatches(
                part.source,
                count,
                rows=config.global_batch // config.accumulate,
                row=lambda number, record: view(record.image, np.random.default_rng(0)),
                shapes=jax.ShapeDtypeStruct((size, size, 3), np.uint8),
                of=f"images{of}",
            )

        self._batches = batches_of_parts(held_out, config.validation_images, batches)
        self._measure = jax.jit(self._measured)

    def describe(self) -> str:
        """What is measured, in one line."""
        counts = ", ".join(batches.described for batches in self._batches.values())
        return f"{counts} every {self.every:,} steps; {self._distance}"

    def measure(self, state: TrainState) -> dict[str, float]:
        """The metrics of a state; every process of the run calls it, and all get the same.

        Raises:
            InputError: no image can be read any more.
        """
        values = self._objective.bundle_values(state.values)
        whole = _Sums(self._model.codebook)
        found: dict[str, float] = {}
        for part, batches in self._batches.items():
            own = _Sums(self._model.codebook)
            for images, there, here in batches(state.mesh):
                of_images, of_codes = self._measure(values, self._lpips, images, there)
                arrays = {name: to_host(array)[here] for name, array in of_images.items()}
                uses = to_host(of_codes)
                whole.add(arrays, uses)
                own.add(arrays, uses)
            if part:
                metrics = own.metrics()
                found |= {f"{name}/{part}": metrics[name] for name in self._names}
        metrics = whole.metrics()
        return {name: metrics[name] for name in self._names} | found

    def _measured(
        self,
        values: ModelValues,
        weights: LpipsWeights | None,
        images: jax.Array,
        there: jax.Array,
    ) -> tuple[Mapping[str, jax.Array], jax.Array]:
        """What is measured of each image [b], and how often each code is used [K]."""
        codec = self._model.module(jnp.float32)
        params, codebook = values
        codes = encode_images(codec, params, codebook, images)
        decoded = decode_codes(codec, params, codebook, codes)
        uses = jnp.zeros(self._model.codebook).at[codes].add(there[:, None, None])
        return pair_metrics(weights, images, decoded), uses


class _Sums:
    """What is measured of some images, and how often their codes are used."""

    def __init__(self, codebook: int):
        self._of_images: dict[str, list[np.ndarray]] = {}
        self._uses = np.zeros(codebook)

    def add(self, of_images: Mapping[str, np.ndarray], uses: np.ndarray) -> None:
        """Adds a batch."""
        for name, array in of_images.items():
            self._of_images.setdefault(name, []).append(array)
        self._uses += uses

    def metrics(self) -> dict[str, float]:
        """All that `image_metrics` may name, over all images."""
        arrays = {name: np.concatenate(pieces) for name, pieces in self._of_images.items()}
        means = {name: np.mean(values) for name, values in image_values(arrays).items()}
        return {f"validation_{n}": float(x) for n, x in (means | use_of(self._uses)).items()}
