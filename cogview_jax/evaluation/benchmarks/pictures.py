"""A model of one's own captioned images: held-out loss, CapLoss, FID and KID, chosen prompts.

The images are those of the captioned folder `--real`, or of `--captions` as for table1; training
should not have seen them. CapLoss is measured where `--rerank_with` names a caption bundle, FID and
KID where `--features` names a network; the page shows images of every `--prompt`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.data.transforms import SquareView
from cogview_jax.evaluation.accepted_flags import (
    BLUR,
    CAPTIONED,
    DISTANCES,
    FID_NETWORKS,
    PROMPTS,
    SAMPLING,
)
from cogview_jax.evaluation.benchmark import Measured, Options, Report, mean_of
from cogview_jax.evaluation.benchmarks.fid import open_extractor
from cogview_jax.evaluation.candidates import sample_asked, sha256_of
from cogview_jax.evaluation.captioned_sets import CaptionedSet, open_captioned
from cogview_jax.evaluation.features import FEATURE_NETWORKS
from cogview_jax.evaluation.image_sets import ImageSet, fill_rows, good_images, require_readable
from cogview_jax.evaluation.page import Images, Section
from cogview_jax.evaluation.row_store import RowStore
from cogview_jax.evaluation.scorer import CapLossScorer
from cogview_jax.evaluation.sequence_loss import sequence_losses
from cogview_jax.evaluation.set_distances import ImageFeatures, distances, lines_of
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.errors import InputError

SHARES_WORK, NEEDS_FLAGS = True, ("--real",)
NEEDS_PARTS, NEEDS_TASK = EVERY_PART, "text_to_image"
TAKES = (
    *("num_prompts", *SAMPLING, "rerank_with", *CAPTIONED, *PROMPTS),
    *(*DISTANCES, "blur", *BLUR),
)
FEATURES = FID_NETWORKS
#: Images whose loss is computed together, and images of a prompt on the page.
_TOGETHER, _SHOWN = 64, 4


def run(model: CogView, options: Options) -> Measured:
    """Measures a bundle of text_to_image on `options.count` of the images, chosen at random.

    Raises:
        InputError: the bundle is of another task, or there are no captioned images.
    """
    asked, folder = options.images, Path(options.unfinished)
    if asked.real is None and asked.captions is None:
        raise InputError(
            "--benchmark pictures needs --real: a folder of captioned images, or --captions"
        )
    captioned = open_captioned(
        asked.captions,
        asked.real,
        count=options.count,
        size=model.codec.config.image_size,
        seed=options.seed,
    )
    require_readable(captioned.images, "--real")
    model.prompts.pieces_of([*asked.prompts, *captioned.texts])
    scorer = extractor = None
    if options.rerank_with:
        scorer = CapLossScorer(options.rerank_with, options.precision, folder)
        scorer.check(captioned.texts)
    if asked.features.keys() & FEATURE_NETWORKS.keys():
        extractor = open_extractor(asked)
    # Nothing the user may have got wrong is left.
    report: Report = {"pictures": captioned.name, **captioned.provenance}
    report["loss"] = _losses(model, captioned, options, folder / "loss")
    if scorer is not None or extractor is not None:
        generated = sample_asked(model, captioned.texts, 1, folder / "generated", options)
        if scorer is not None:
            losses = scorer.scores(generated, captioned.texts, "generated")
            true = scorer.scores(captioned.images, captioned.texts, "true")
            report["cap_loss"] = {
                "generated": mean_of(losses[~np.isnan(losses)]),
                "true": mean_of(true[~np.isnan(true)]),
                "by": scorer.sha256,
            }
        if extractor is not None:
            real = ImageFeatures(
                captioned.images, extractor, folder / "real_features", asked.blur_kernel
            )
            made = ImageFeatures(
                generated, extractor, folder / "generated_features", asked.blur_kernel
            )
            report |= distances(real, made, extractor, asked, options.seed)
    return Measured(report, _shown(model, captioned, options, folder))


def _losses(model: CogView, captioned: CaptionedSet, options: Options, folder: Path) -> Report:
    """The loss over all tokens, and over those of texts and of images, with standard errors."""
    job = {
        "bundle": options.bundle,
        "of": captioned.images.identity,
        "texts": sha256_of(captioned.texts),
        "precision": options.precision,
    }
    # A row an image: sums over its text and image tokens, then how many of either there are.
    store = RowStore(
        folder, job, count=len(captioned.texts), width=4, batch=_TOGETHER, dtype=np.float64
    )
    view, rng = SquareView(model.codec.config.image_size), np.random.default_rng(0)

    def compute(readable: Iterable[np.ndarray], numbers: range) -> Iterator[np.ndarray]:
        squares = (view(image, rng) for image in readable)
        texts = iter([captioned.texts[number] for number in numbers])
        while some := list(itertools.islice(squares, _TOGETHER)):
            words = list(itertools.islice(texts, len(some)))
            found = sequence_losses(model, np.stack(some), words, options.batch_size)
            yield np.concatenate(found, axis=1)

    good = fill_rows(store, captioned.images, compute, "loss")
    total, number = np.split(store.read(good), 2, axis=1)
    every = total.sum(axis=1), number.sum(axis=1)
    kinds = {"loss": every, "text_loss": (total[:, 0], number[:, 0])}
    kinds |= {"image_loss": (total[:, 1], number[:, 1])}
    report = {}
    for name, (losses, of) in kinds.items():
        mean = losses.sum() / of.sum()
        # Of a ratio of means, by the residuals of the rows.
        error = mean_of((losses - mean * of) / of.mean())["standard_error"]
        report[name] = {"mean": float(mean), "standard_error": error, "n": len(losses)}
    return report


def _shown(
    model: CogView, captioned: CaptionedSet, options: Options, folder: Path
) -> list[Section]:
    """Images of one's own prompts, and of some captions beside the true ones."""
    sections: list[Section] = []
    prompts = options.images.prompts
    if prompts:
        images = sample_asked(model, prompts, _SHOWN, folder / "prompts", options)
        pictures = good_images(images, range(len(images)))
        texts = [prompts[number // _SHOWN] for number in pictures]
        sections.append(Images("Your prompts", list(pictures.values()), texts))
    numbers = range(min(_SHOWN, len(captioned.texts)))
    made = sample_asked(model, captioned.texts[:_SHOWN], 1, folder / "shown", options)
    kinds: dict[str, ImageSet] = {"true": captioned.images, "generated": made}
    found = {kind: good_images(images, numbers) for kind, images in kinds.items()}
    pairs = [(kind, number) for number in numbers for kind in kinds if number in found[kind]]
    shown = [found[kind][number] for kind, number in pairs]
    texts = [f"{kind}: {captioned.texts[number]}" for kind, number in pairs]
    return [*sections, Images("Images of the folder", shown, texts)]


def table(report: Mapping[str, Any]) -> str:
    """The numbers for people, a line each."""
    lines = [
        f"{name.replace('_', ' '):20}{loss['mean']:.4f} +- {loss['standard_error'] or 0:.4f}"
        for name, loss in report["loss"].items()
    ]
    for name in ("generated", "true"):
        if "cap_loss" in report:
            loss = report["cap_loss"][name]
            lines.append(f"{'CapLoss, ' + name:20}{loss['mean']:.4f}")
    if "fid" in report:
        lines += lines_of(report)
    return "\n".join(lines)
