"""Measures an image tokenizer on held-out images.

Legend: b images of a batch, h w rows and columns of pixels, K codes.
"""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.sources.source import Source, readable
from cogview_jax.data.transforms import SquareView
from cogview_jax.evaluation.image_quality import psnr, squared_error, ssim
from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.models.networks.lpips import LpipsWeights, lpips
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import local_parts, place_batch, to_host
from cogview_jax.runtime.processes import log
from cogview_jax.tasks.experiment import CodecExperiment
from cogview_jax.tokenizers.codecs.codec import decode_codes, encode_images
from cogview_jax.training.codec_loss import VQGANLoss
from cogview_jax.training.objective import ModelValues, Objective
from cogview_jax.training.state import TrainState

#: The most that an image counts in the mean PSNR, in dB: one without any error has no finite one.
MOST_PSNR = 100.0
#: Metrics of which a higher value is better.
HIGHER_IS_BETTER = frozenset(
    {
        *("psnr", "codebook_usage", "perplexity"),
        *("validation_psnr", "validation_ssim", "validation_usage", "validation_perplexity"),
    }
)
_THREADS = 4


class Validation:
    """The first readable held-out images, their centres at the size of training, and measures.

    All metrics are of the decoded images as they would be saved: encoded in float32 without noise,
    decoded, clipped and rounded to 8 bits. They do not depend on the size of a batch.

    validation_l2 is the mean squared error of pixels in [0, 1]. validation_psnr, validation_ssim
    and validation_lpips are means over images of what `evaluation.image_quality` and
    `models.networks.lpips` define. validation_usage is the share of the codes that any of the
    images uses, and validation_perplexity that of all their codes.
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
        self._objective, self._held_out = objective, held_out
        self._count = min(config.validation_images, len(held_out))
        self.every, self._said = config.validate_every, False
        self._rows = config.global_batch // config.accumulate
        self._view = SquareView(self._model.image_size)
        loss, files = experiment.loss, {"train.validation_lpips": config.validation_lpips}
        if isinstance(loss, VQGANLoss):
            files["loss.perceptual"] = loss.perceptual
        setting, file = next(((name, file) for name, file in files.items() if file), ("", ""))
        self._lpips = read_lpips(file) if file else None
        empty = " and ".join(files) + (" are" if len(files) > 1 else " is")
        self._distance = f"LPIPS is not measured, since {empty} empty"
        if self._lpips is not None:
            self._distance = f"LPIPS by {self._lpips.network} ({setting} = {file})"
        size = self._model.image_size
        image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
        jax.eval_shape(_pairs, self._lpips, image, image)  # refuses images that are too small
        self._require(next(readable(held_out), None) is not None)
        self._measure = jax.jit(self._measured)

    @property
    def names(self) -> list[str]:
        """The names of the metrics."""
        optional = [] if self._lpips is None else ["lpips"]
        names = ["l2", "psnr", "ssim", *optional, "usage", "perplexity"]
        return [f"validation_{name}" for name in names]

    def describe(self) -> str:
        """What is measured, in one line."""
        return (
            f"{self._count:,} of {len(self._held_out):,} held-out images every {self.every:,}"
            f" steps; {self._distance}"
        )

    def measure(self, state: TrainState) -> dict[str, float]:
        """The metrics of a state; every process of the run calls it, and all get the same.

        Each process reads the images of its own part of the mesh. As many further images are taken
        as are unreadable, while there are any.

        Raises:
            InputError: no image can be read any more.
        """
        mesh, values = state.mesh, self._objective.bundle_values(state.values)
        parts, ways = local_parts(mesh)
        each = max(1, self._rows // ways)
        found: dict[str, list[np.ndarray]] = {}
        uses = np.zeros(self._model.codebook)
        start, stop, used = 0, self._count, 0
        with ThreadPoolExecutor(_THREADS) as pool:
            while start < stop:
                numbers = [start + part * each + i for part in parts for i in range(each)]
                rows = pool.map(self._row, numbers, itertools.repeat(stop))
                batch = place_batch(_stacked(list(rows)), mesh)
                of_images, of_codes = self._measure(values, self._lpips, batch)
                for name, array in of_images.items():
                    found.setdefault(name, []).append(to_host(array))
                uses += to_host(of_codes)
                used += int(found["there"][-1].sum())
                start = min(start + ways * each, stop)
                if start == stop:
                    stop = min(stop + self._count - used, len(self._held_out))
        self._require(used > 0)
        arrays = {name: np.concatenate(pieces) for name, pieces in found.items()}
        there = arrays.pop("there") > 0
        if used < stop and not self._said:
            log(f"validation: {stop - used} of {stop} held-out images are unreadable")
            self._said = True
        errors = arrays.pop("error")[there].astype(np.float64)
        share = uses[uses > 0] / uses.sum()
        metrics = {
            "l2": np.mean(errors) / 255**2,
            "psnr": np.mean(np.minimum(psnr(errors), MOST_PSNR)),
            **{name: np.mean(array[there].astype(np.float64)) for name, array in arrays.items()},
            "usage": np.mean(uses > 0),
            "perplexity": np.exp(-np.sum(share * np.log(share))),
        }
        return {name: float(metrics[name.removeprefix("validation_")]) for name in self.names}

    def _require(self, any_readable: bool) -> None:
        if not any_readable:
            raise InputError(f"none of the {len(self._held_out)} held-out images can be read")

    def _row(self, number: int, stop: int) -> tuple[np.ndarray, float]:
        """An image uint8 [h, w, 3] and 1; black and 0 from `stop` on and where it is unreadable."""
        size = self._model.image_size
        if number < stop:
            try:
                image = self._held_out[number].image
                return self._view(image, np.random.default_rng(0)), 1.0
            except BadRecord:
                pass
        return np.zeros((size, size, 3), np.uint8), 0.0

    def _measured(
        self, values: ModelValues, weights: LpipsWeights | None, batch: tuple[jax.Array, jax.Array]
    ) -> tuple[Mapping[str, jax.Array], jax.Array]:
        """What is measured of each image [b], and how often each code is used [K]."""
        codec, (images, there) = self._model.module(jnp.float32), batch
        params, codebook = values
        codes = encode_images(codec, params, codebook, images)
        decoded = decode_codes(codec, params, codebook, codes)
        uses = jnp.zeros(self._model.codebook).at[codes].add(there[:, None, None])
        return _pairs(weights, images, decoded) | {"there": there}, uses


def _pairs(weights: LpipsWeights | None, a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
    """What is measured of each pair of uint8 images [b, h, w, 3], by name: [b]."""
    found = {"error": squared_error(a, b), "ssim": ssim(a, b)}
    if weights is None:
        return found
    x, y = (image.astype(jnp.float32) / 127.5 - 1 for image in (a, b))
    return found | {"lpips": lpips(weights, x, y)}


def _stacked(rows: Sequence[tuple[np.ndarray, float]]) -> tuple[np.ndarray, np.ndarray]:
    images, there = zip(*rows, strict=True)
    return np.stack(images), np.asarray(there, np.float32)
