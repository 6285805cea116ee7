"""How well a bundle does its task on the embedded emoji: is the concept right, is the style.

Of a bundle for text_to_image: the share of images whose concept and style are judged right
(`evaluation.emoji_judge`), beside the ceiling that the image tokenizer sets and chance; FID and KID
against the held-out images where `--features` names a network; with `--rerank_with` also CapLoss,
and the best of several candidates by it. Of a caption bundle: the share of captions that say what
the images show. Of a bundle for super-resolution, which upsamples images of half the size: MSE and
SSIM of its images, beside those of resampling; LPIPS where `--features` names its weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from cogview_jax.data import emoji_set
from cogview_jax.evaluation.accepted_flags import FID_NETWORKS
from cogview_jax.evaluation.benchmark import ImageOptions, Measured, Options, Report, mean_of
from cogview_jax.evaluation.benchmarks.fid import open_extractor
from cogview_jax.evaluation.candidates import (
    CodedImages,
    best_of,
    encode_images,
    sample_asked,
)
from cogview_jax.evaluation.captioned_sets import ArrayImages
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.evaluation.emoji_judge import EmojiJudge, Judged
from cogview_jax.evaluation.features import FEATURE_NETWORKS
from cogview_jax.evaluation.image_sets import good_images
from cogview_jax.evaluation.page import Figure, Images
from cogview_jax.evaluation.reconstruction import open_lpips
from cogview_jax.evaluation.scorer import CapLossScorer
from cogview_jax.evaluation.set_distances import SelectedFeatures, distances, lines_of
from cogview_jax.evaluation.upsampling import (
    compared,
    opened_upsampler,
    pair_lines,
    upsampled_images,
)
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import log
from cogview_jax.runtime.progress import Progress

FEATURES = (*FID_NETWORKS, "lpips")
#: What the splits of pairs are called in a report.
NAMES = {"train": "seen", "held_out": "held_out"}
#: What is judged of an image.
RIGHT = ("concept", "style", "both")
#: Images of a split that the page shows, and upsampled ones.
_SHOWN, _ROWS = 32, 8


class Asked(NamedTuple):
    """What images of one split are asked for: numbers of concepts and styles, and texts.

    `languages` are those of the texts.
    """

    concepts: Int[np.ndarray, " n"]
    styles: Int[np.ndarray, " n"]
    languages: Sequence[str]
    texts: Sequence[str]


def asked_for(split: str, count: int, seed: int, repeated: bool = True) -> Asked:
    """`count` of the pairs of a split at random, each in one language; all in both are the most.

    No pair is asked for twice in the same language, nor in the second before all are in one.
    Unless `repeated`, no pair is asked for twice at all.
    """
    pairs, languages = emoji_set.pairs(split), emoji_set.LANGUAGES
    order = np.random.default_rng([seed, len(pairs)]).permutation(len(pairs))
    most = len(pairs) * (len(languages) if repeated else 1)
    if count > most:
        what = "captions" if repeated else "images"
        log(f"--num_prompts {count}: the {NAMES[split]} pairs have {most} {what}, all are taken")
    chosen = []
    for i in range(min(count, most)):
        turn, place = divmod(i, len(pairs))
        chosen.append((*pairs[order[place]], languages[(place + turn) % len(languages)]))
    concepts, styles, tongues = zip(*chosen, strict=True)
    texts = [
        emoji_set.caption(emoji_set.concepts()[concept], emoji_set.STYLES[style], tongue)
        for concept, style, tongue in chosen
    ]
    return Asked(np.array(concepts), np.array(styles), tongues, texts)


def run(model: CogView, options: Options) -> Measured:
    """Measures a bundle at its own task on `options.count` pairs of each split.

    Raises:
        InputError: the bundle lacks a part or is of another task, a caption or the size of the
            images does not fit it, or candidates are asked for of another task than text_to_image.
    """
    model.need("transformer", "text", "codec")
    emoji_set.require_webp()
    task = model.layout.task
    if options.rerank_with and task != "text_to_image":
        raise InputError(f"--rerank_with is for a bundle of text_to_image, not of {task}")
    asked = {
        split: asked_for(split, options.count, options.seed, task != "super_resolution")
        for split in emoji_set.SPLITS
    }
    if task == "caption":
        return Measured(_captions(model, asked, options))
    if task == "super_resolution":
        return _super_resolution(model, asked, options)
    model.need_task("text_to_image")
    return _generated(model, asked, options)


def higher_is_better(task: str | None) -> dict[str, bool]:
    """See `Benchmark`: shares of what is judged right, and of super-resolution MSE of the model."""
    if task == "super_resolution":
        errors = ("squared_error/sampled/mean", "squared_error/enlarged/mean")
        return {f"{name}/{error}": False for name in NAMES.values() for error in errors}
    rows = {"text_to_image": ["generated"], "caption": ["said"]}.get(task or "", [])
    return {
        f"{name}/{row}/{part}": True for name in NAMES.values() for row in rows for part in RIGHT
    }


# Text to image.


def _generated(model: CogView, asked: Mapping[str, Asked], options: Options) -> Measured:
    folder, size = Path(options.unfinished), model.codec.config.image_size
    for each in asked.values():
        model.prompts.pieces_of(each.texts)
    scorer = None
    if options.rerank_with:
        scorer = CapLossScorer(options.rerank_with, options.precision, folder)
        for each in asked.values():
            scorer.check(each.texts)
    extractor = None
    if options.images.features.keys() & FEATURE_NETWORKS.keys():
        extractor = open_extractor(options.images)
    judge = EmojiJudge(size, extractor, folder)
    pairs = len(emoji_set.concepts()) * len(emoji_set.STYLES)
    report: Report = {
        "judge": {"features": judge.describe(), "own_error": judge.own_error()},
        "chance": dict(
            zip(
                RIGHT,
                (1 / len(emoji_set.concepts()), 1 / len(emoji_set.STYLES), 1 / pairs),
                strict=True,
            )
        ),
    }
    sections = []
    for split, each in asked.items():
        name = NAMES[split]
        images = sample_asked(model, each.texts, options.candidates, folder / name, options)
        judged = judge(judge.features(images, name))
        rows = _rows(judged, each, options.candidates)
        first = np.arange(len(each.texts)) * options.candidates
        if scorer is not None:
            scores = scorer.scores(images, each.texts, name).reshape(-1, options.candidates)
            rows["cap_loss"] = mean_of(scores[:, 0])
            rows |= _best(scores, judged, each)
        true = _true_images(each, size)
        decoded = encode_images(
            model,
            true,
            folder / f"{name}_codes",
            bundle=options.bundle,
            precision=options.precision,
        )
        ceiling = judge(judge.features(decoded, f"{name}_ceiling"))
        rows["ceiling"] = shares(ceiling, each)
        if extractor is not None and split == "held_out":
            real = judge.of(
                _true_images(asked_for(split, len(emoji_set.pairs(split)), 0), size),
                "held_out_images",
            )
            made = SelectedFeatures(judge.of(images, name), first)
            report["held_out_images"] = distances(
                real, made, extractor, ImageOptions(resize=options.images.resize), options.seed
            )
        report[name] = {"prompts": len(each.texts), **rows}
        sections.append(_shown(images, judged, each, name, first))
    return Measured(report, sections)


def _tiles(asked: Asked, size: int) -> UInt8[np.ndarray, "n h w 3"]:
    pairs = zip(asked.concepts.tolist(), asked.styles.tolist(), strict=True)
    return np.stack([emoji_set.tile(*pair, size) for pair in pairs])


def _true_images(asked: Asked, size: int) -> ArrayImages:
    return ArrayImages(_tiles(asked, size), "true images")


def _right(judged: Judged, asked: Asked, candidates: int = 1) -> dict[str, np.ndarray]:
    """Whether each image shows what is asked for, by part; prompt i has `candidates` images."""
    concept = judged.concepts == np.repeat(asked.concepts, candidates)
    style = judged.styles == np.repeat(asked.styles, candidates)
    return {"concept": concept, "style": style, "both": concept & style}


def shares(judged: Judged, asked: Asked, rows: np.ndarray | slice = slice(None)) -> Report:
    """The shares that are judged right, of some of the images; each prompt has as many images."""
    right = _right(judged, asked, len(judged.styles) // len(asked.texts))
    return {part: float(right[part][rows].mean()) for part in RIGHT}


def _rows(judged: Judged, asked: Asked, candidates: int) -> Report:
    """Shares of all images, by language and by style."""
    rows = {"generated": shares(judged, asked)}
    groups = {
        tongue: np.array([each == tongue for each in asked.languages])
        for tongue in emoji_set.LANGUAGES
    }
    groups |= {style.name: asked.styles == i for i, style in enumerate(emoji_set.STYLES)}
    for name, members in groups.items():
        if members.any():
            rows[f"generated_{name}"] = shares(judged, asked, np.repeat(members, candidates))
    return rows


def _best(scores: Float[np.ndarray, "n candidates"], judged: Judged, asked: Asked) -> Report:
    """Shares of the best by CapLoss of the first 1, 4, 16 ... candidates."""
    counts = [4**i for i in range(scores.shape[1].bit_length()) if 4**i <= scores.shape[1]]
    return {
        f"best_of_{count}": shares(judged, asked, best_of(scores, count, lowest=True))
        for count in counts
    }


def _shown(
    images: CodedImages, judged: Judged, asked: Asked, name: str, first: np.ndarray
) -> Images:
    """The first image of some prompts, with what the judge takes it for where that is wrong."""
    some = first[:_SHOWN]
    captions = []
    for prompt, number in enumerate(some):
        concept, style = int(judged.concepts[number]), int(judged.styles[number])
        captions.append(asked.texts[prompt])
        if (concept, style) != (asked.concepts[prompt], asked.styles[prompt]):
            seen = emoji_set.caption(emoji_set.concepts()[concept], emoji_set.STYLES[style], "en")
            captions[-1] += f" (judged: {seen})"
    title = f"Images of {name.replace('_', '-')} pairs"
    return Images(title, list(good_images(images, some.tolist()).values()), captions)


# Captions.


def _captions(model: CogView, asked: Mapping[str, Asked], options: Options) -> Report:
    """Shares of captions of the true images that name concept and style, in either language."""
    size = model.codec.config.image_size
    report: Report = {}
    with Progress(
        sum(len(each.texts) for each in asked.values()), "evaluate", unit="image", per_minute=True
    ) as progress:
        for split, each in asked.items():
            texts = model.caption(
                _tiles(each, size),
                options.seed,
                sampling=options.sampling(model),
                batch_size=options.batch_size,
                progress=progress.update,
            )
            said = shares(_named(texts), each)
            report[NAMES[split]] = {"images": len(texts), "said": said}
    return report


def _named(texts: Sequence[str]) -> Judged:
    """The numbers of what captions name; -1 where a text is no caption of the set."""
    concepts, styles = emoji_set.concepts(), emoji_set.STYLES
    numbers = []
    for text in texts:
        try:
            concept, style = emoji_set.parse_caption(text)
            numbers.append((concepts.index(concept), styles.index(style)))
        except InputError:
            numbers.append((-1, -1))
    return Judged(*np.array(numbers).T)


# Super-resolution.


def _super_resolution(model: CogView, asked: Mapping[str, Asked], options: Options) -> Measured:
    """Compares what is made of images of half the size with the true images."""
    weights, network = open_lpips(options.images.features.get("lpips"))
    report: Report = {"lpips_network": network} if network else {}
    sections = []
    size, count = emoji_set.TILE // 2, sum(len(each.texts) for each in asked.values())
    with opened_upsampler(model, options, size, count) as upsampler:
        for split, each in asked.items():
            # A text that is not read would still choose the random numbers.
            reads = model.layout.region("text").length
            texts = each.texts if reads else [""] * len(each.texts)
            small, true = _tiles(each, size), _tiles(each, 2 * size)
            images = upsampled_images(upsampler, small, true, texts)
            name = NAMES[split]
            report[name] = {"images": len(true), **compared(images, true, weights)}
            ways = {"given": small, "bicubic": images["bicubic"], "model": images["enlarged"]}
            sections.append(_side_by_side(ways | {"true": true}, name))
    return Measured(report, sections)


def _side_by_side(ways: Mapping[str, np.ndarray], name: str) -> Figure:
    """A row for each of some images: how it looks in each of the ways."""
    rows = list(zip(*(images[:_ROWS] for images in ways.values()), strict=True))
    sheet = caption_grid([image for row in rows for image in row], [*ways] * len(rows), len(ways))
    return Figure(f"Super-resolution of {name.replace('_', '-')} pairs", sheet)


def table(report: Mapping[str, Any]) -> str:
    """The shares by split and the distances, or what is measured of pairs, as lines for people."""
    if "squared_error" in report["seen"]:
        return "\n".join(line for name in NAMES.values() for line in pair_lines(name, report[name]))
    lines = [f"{'':28}" + "".join(f"{part:>10}" for part in RIGHT)]
    for name in NAMES.values():
        for row, shares in report[name].items():
            if isinstance(shares, Mapping) and shares.keys() == set(RIGHT):
                label = f"{name} {row}".replace("_", " ")
                lines.append(f"{label:28}" + "".join(f"{shares[part]:10.3f}" for part in RIGHT))
    if "chance" in report:
        lines.append(
            f"{'chance':28}" + "".join(f"{report['chance'][part]:10.3f}" for part in RIGHT)
        )
        error = report["judge"]["own_error"]
        lines.append(f"{'the judge is wrong':28}{error['concept']:10.3f}{error['style']:10.3f}")
    if "held_out_images" in report:
        lines += lines_of(report["held_out_images"])
    return "\n".join(lines)
