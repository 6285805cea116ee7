"""Images that a model has upsampled, beside resampled ones and the ceiling that its codes set.

Legend: n images, h w rows and columns of the small ones.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from cogview_jax.evaluation.benchmark import Options, Report, mean_of
from cogview_jax.evaluation.reconstruction import pair_metrics
from cogview_jax.models.networks.lpips import LpipsWeights
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.progress import Progress
from cogview_jax.sampling.back_projection import ROUNDS, back_projected

#: What upsamples without a model.
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
#: What `compared` may measure, and its names in tables.
_MEASURES = {"squared_error": "MSE", "ssim": "SSIM", "lpips": "LPIPS"}
#: Images that are compared together, at most.
_TOGETHER = 32
_pair_metrics = jax.jit(pair_metrics)


class Upsampler(NamedTuple):
    """What a bundle for super-resolution does.

    Attributes:
        upsample: uint8 images [n, h, w, 3] and their texts -> images twice as large, as the codes
            decode, before back-projection.
        reconstruct: uint8 images of either size through the image tokenizer and back.
    """

    upsample: Callable[[np.ndarray, Sequence[str]], np.ndarray]
    reconstruct: Callable[[np.ndarray], np.ndarray]


@contextlib.contextmanager
def opened_upsampler(
    model: CogView, options: Options, size: int, count: int
) -> Iterator[Upsampler]:
    """A bundle as an `Upsampler`, whose progress is shown as long as the context is open.

    Args:
        model: the bundle.
        options: sampling and its seed.
        size: rows and columns of the small images.
        count: how many of them there will be.

    Raises:
        InputError: the bundle does not upsample images of this size.
    """
    factor = model.codec.config.downsampling
    total = count * len(model.super_resolution.plan(size).windows)
    with Progress(total, "evaluate", unit="window", per_minute=True) as progress:

        def upsample(images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
            larger = model.super_resolve(
                images,
                texts,
                options.seed,
                sampling=options.sampling(model),
                batch_size=options.batch_size,
                progress=progress.update,
                back_projection=0,
            )
            return np.stack([np.asarray(image) for image in larger])

        def reconstruct(images: np.ndarray) -> np.ndarray:
            return model.decode(model.encode(images, images.shape[1] // factor))

        yield Upsampler(upsample, reconstruct)


def upsampled_images(
    upsampler: Upsampler,
    small: UInt8[np.ndarray, "n h w 3"],
    true: UInt8[np.ndarray, "n 2*h 2*w 3"],
    texts: Sequence[str],
    *,
    rounds: int = ROUNDS,
    back_project: Sequence[str] = tuple(RESAMPLING),
) -> dict[str, UInt8[np.ndarray, "n 2*h 2*w 3"]]:
    """Small images upsampled in several ways.

    Args:
        upsampler: the model.
        small: the images that are upsampled.
        true: the same in twice their size.
        texts: one an image.
        rounds: of back-projection.
        back_project: names in RESAMPLING.

    Returns:
        Images by name:
            sampled: the decoded codes of the model.
            enlarged: the same after iterative back-projection (`back_projected`), which is what
                `super_resolve` returns for all but released weights.
            bilinear, bicubic: the small image resampled without a model.
            NAME_back_projected: of the names in `back_project`, the same after back-projection.
            bilinear_of_codes: the small image's reconstruction, resampled.
            ceiling: the reconstruction of the true image. What is made of codes alone cannot be
                expected to do better.
    """
    resamplings = {name: resampled(small, method) for name, method in RESAMPLING.items()}
    sampled = upsampler.upsample(small, texts)
    return {
        "sampled": sampled,
        "enlarged": np.stack(back_projected(sampled, small, rounds)),
        **resamplings,
        **{
            f"{name}_back_projected": np.stack(back_projected(resamplings[name], small, rounds))
            for name in back_project
        },
        "bilinear_of_codes": resampled(upsampler.reconstruct(small), RESAMPLING["bilinear"]),
        "ceiling": upsampler.reconstruct(true),
    }


def resampled(
    images: UInt8[np.ndarray, "n h w 3"], method: Image.Resampling
) -> UInt8[np.ndarray, "n 2*h 2*w 3"]:
    """Images with twice as many rows and columns, without a model."""
    height, width = images.shape[1:3]
    large = (2 * width, 2 * height)
    return np.stack([np.asarray(Image.fromarray(image).resize(large, method)) for image in images])


def mean_squared_error(images: np.ndarray, true: np.ndarray) -> float:
    """The mean over all values of uint8 arrays of one shape."""
    return float(np.mean(np.square(images.astype(np.float64) - true)))


def compared(
    images: Mapping[str, UInt8[np.ndarray, "n h w 3"]],
    true: UInt8[np.ndarray, "n h w 3"],
    weights: LpipsWeights | None,
) -> Report:
    """How far images are from the true ones, with standard errors over images.

    Args:
        images: by the name of what has made them.
        true: the images that all of them should be.
        weights: of LPIPS, or None to do without it.

    Returns:
        {"squared_error" (of values from 0 to 255), "ssim" and, with weights, "lpips":
        {name: `mean_of` the images}}.
    """
    found = {name: _values(each, true, weights) for name, each in images.items()}
    return {
        measure: {name: mean_of(values[measure]) for name, values in found.items()}
        for measure in (_MEASURES if weights is not None else [*_MEASURES][:-1])
    }


def _values(
    images: np.ndarray, true: np.ndarray, weights: LpipsWeights | None
) -> dict[str, Float[np.ndarray, " n"]]:
    """What is measured of each pair."""
    batches, rows = [], min(_TOGETHER, len(true))
    for start in range(0, len(true), rows):
        # All batches have one size, so that one function is compiled.
        numbers = np.arange(start, start + rows) % len(true)
        batches.append(_pair_metrics(weights, images[numbers], true[numbers]))
    values = {
        name: np.concatenate([batch[name] for batch in batches])[: len(true)] for name in batches[0]
    }
    return {"squared_error": values.pop("error"), **values}


def pair_lines(split: str, report: Report) -> list[str]:
    """What `compared` gives of a split as lines for people, the first of them a heading."""
    measures = [measure for measure in _MEASURES if measure in report]
    heads = "".join(f"{_MEASURES[measure]:>20}" for measure in measures)
    lines = [f"{split:34}{heads}"]
    for name in report[measures[0]]:
        cells = [report[measure][name] for measure in measures]
        values = [f"{each['mean']:.4g} +- {each['standard_error'] or 0:.2g}" for each in cells]
        lines.append(f"  {name.replace('_', ' '):32}" + "".join(f"{text:>20}" for text in values))
    return lines
