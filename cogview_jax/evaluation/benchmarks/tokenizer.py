"""How well an image tokenizer gives images back: rFID, LPIPS, SSIM, PSNR, L2, use of its codes.

The images are those of the folder `--real`, or new captioned shapes. What needs a network is
measured where `--features` names its weights: inception or efficientnet_lite0 for rFID and KID,
lpips for LPIPS.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from cogview_jax.evaluation.accepted_flags import DISTANCES, FID_NETWORKS
from cogview_jax.evaluation.benchmark import Measured, Options, Report, mean_of
from cogview_jax.evaluation.benchmarks.fid import open_extractor
from cogview_jax.evaluation.candidates import CodedImages, Squares, encode_images
from cogview_jax.evaluation.captioned_sets import drawn_captions
from cogview_jax.evaluation.features import FEATURE_NETWORKS
from cogview_jax.evaluation.image_sets import (
    ImageSet,
    SourceImages,
    good_images,
    open_folder,
    require_readable,
)
from cogview_jax.evaluation.page import Images
from cogview_jax.evaluation.reconstruction import code_use, image_values, open_lpips, pair_metrics
from cogview_jax.evaluation.row_store import RowStore
from cogview_jax.evaluation.set_distances import ImageFeatures, distances, lines_of
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError

SHARES_WORK = True
NEEDS_PARTS = ("codec",)
TAKES = ("num_prompts", "seed", "precision", "real", *DISTANCES)
FEATURES = (*FID_NETWORKS, "lpips")
#: Images that are compared together, and those that the page shows.
_TOGETHER, _SHOWN = 32, 8


def run(model: CogView, options: Options) -> Measured:
    """Measures the image tokenizer of a bundle on images at the size it was trained for.

    Raises:
        InputError: there are no images, or weights are of another network.
    """
    asked, size, folder = options.images, model.codec.config.image_size, Path(options.unfinished)
    images: ImageSet
    if asked.real is None:
        images = drawn_captions(options.count, size, options.seed).images
    else:
        images = SourceImages(open_folder(asked.real, "--real"), asked.real)
        require_readable(images, "--real")
    true = Squares(images, size)
    decoded = encode_images(
        model, true, folder / "codes", bundle=options.bundle, precision=options.precision
    )
    report: Report = {"images": images.name} | _pairs(true, decoded, options, folder / "pairs")
    report |= code_use(decoded.codes(), model.codec.config.codebook)
    if asked.features.keys() & FEATURE_NETWORKS.keys():
        extractor = open_extractor(asked)
        real = ImageFeatures(true, extractor, folder / "real")
        given = ImageFeatures(decoded, extractor, folder / "decoded")
        measured = distances(real, given, extractor, replace(asked, blur=(0,)), options.seed)
        report |= {"rfid": measured.pop("fid")["0"], **measured}
    return Measured(report, list(_images(true, decoded)))


def _pairs(true: ImageSet, decoded: CodedImages, options: Options, folder: Path) -> Report:
    """Means over images of what compares each with its reconstruction, with standard errors."""
    weights, lpips = open_lpips(options.images.features.get("lpips"))
    names = ["error", "ssim", *(["lpips"] if weights else [])]
    job = {"of": true.identity, "decoded": decoded.identity, "lpips": lpips}
    store = RowStore(folder, job, count=len(true), width=len(names), batch=_TOGETHER)
    measure = jax.jit(pair_metrics)

    def compute(numbers: range) -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), _TOGETHER):
            some = numbers[start : start + _TOGETHER]
            a, b = good_images(true, some), good_images(decoded, some)
            good = [number for number in some if number in a and number in b]
            rows = np.full((len(some), len(names)), np.nan, np.float32)
            if good:
                # All batches have one size, so that one function is compiled.
                padded = [good[i % len(good)] for i in range(_TOGETHER)]
                pair = (np.stack([side[number] for number in padded]) for side in (a, b))
                found = measure(weights, *pair)
                columns = [np.asarray(found[name])[: len(good)] for name in names]
                rows[[some.index(number) for number in good]] = np.stack(columns, axis=1)
            yield rows

    store.fill(compute, "compare")
    rows = store.read(range(store.count)).astype(np.float64)
    rows = rows[~np.isnan(rows[:, 0])]
    if not len(rows):
        raise InputError(f"{true.name}: none of its {len(true)} images can be read")
    values = image_values(dict(zip(names, rows.T, strict=True)))
    report: Report = {"n": len(rows), "unreadable": len(true) - len(rows)}
    report |= {name: mean_of(each) for name, each in values.items()}
    return report | ({"lpips_network": lpips} if lpips else {})


def higher_is_better(task: str | None) -> dict[str, bool]:
    """See `Benchmark`: what is measured without any network, of image tokenizers alone."""
    if task is not None:
        return {}
    means = {"l2/mean": False, "psnr/mean": True, "ssim/mean": True}
    return means | {"usage": True, "perplexity": True}


def table(report: Report) -> str:
    """A line for each number, for people."""
    lines = []
    for name in ("l2", "psnr", "ssim", "lpips"):
        if name in report:
            network = f" ({report['lpips_network']['network']})" if name == "lpips" else ""
            error = report[name]["standard_error"] or 0
            lines.append(f"{name.upper()}{network}: {report[name]['mean']:.5f} +- {error:.5f}")
    lines.append(f"codes used: {report['usage']:.4f}, perplexity {report['perplexity']:.1f}")
    if "rfid" in report:
        of = lines_of({**report, "fid": {"0": report["rfid"]}})
        return "\n".join([*lines, *("r" + line if line.startswith("FID") else line for line in of)])
    return "\n".join([*lines, f"N = {report['n']}"])


def _images(true: ImageSet, decoded: ImageSet) -> list[Images]:
    numbers = range(min(_SHOWN, len(true)))
    a, b = good_images(true, numbers), good_images(decoded, numbers)
    shown = [side[number] for number in numbers if number in a and number in b for side in (a, b)]
    words = ["image", "reconstruction"] * (len(shown) // 2)
    return [Images("Images and reconstructions", shown, words)]
