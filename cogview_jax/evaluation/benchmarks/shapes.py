"""How well a bundle does its task on captioned shapes that no training has seen.

Of a bundle for text_to_image: the share of images that show what their captions say, by attribute,
beside the ceiling that the image tokenizer sets; with a caption bundle, also that of the best of
several candidates by CapLoss (arXiv 2105.13290, section 3.2). Of a caption bundle: the share of
captions that say what drawings show. Of a bundle for super-resolution: the MSE of its images,
beside those of resampling without a model.
"""

import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cogview_jax.evaluation.accepted_flags import CHOICE, SAMPLING
from cogview_jax.evaluation.benchmark import Options, Report
from cogview_jax.evaluation.upsampling import (
    Upsampler,
    mean_squared_error,
    opened_upsampler,
    upsampled_images,
)
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load_scorer
from cogview_jax.runtime.bounds import MOST_PROMPTS, need_count
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.progress import Progress
from cogview_jax.sampling.back_projection import ROUNDS
from cogview_jax.shapes.fresh import LANGUAGES, NAMES, fresh_scenes
from cogview_jax.shapes.judge import ATTRIBUTES, Verdict, judge, shares
from cogview_jax.shapes.scenes import Scene, parse_caption

TAKES = ("num_prompts", *SAMPLING, *CHOICE)
FEATURES = ()
#: Bytes of images that a report may hold at once.
MOST_BYTES = 16 << 30
#: True drawings of which the judge must recognise some through the image tokenizer.
TRIED = 8


def run(model: CogView, options: Options) -> Report:
    """Measures a bundle at its own task; `options.count` examples of each split.

    The splits are "seen" and "held_out", of pairs of colour and shape.

    Raises:
        InputError: the bundle lacks a part, there are fewer than two examples or more than memory
            has room for, or candidates are asked for of another task than text_to_image.
    """
    need_count("--num_prompts", options.count, MOST_PROMPTS // options.candidates)
    if options.count < 2:
        raise InputError(f"--num_prompts {options.count}: expected at least 2, one a language")
    if not {"codec", "transformer"} <= model.parts.names:
        raise InputError("the bundle needs a transformer and a codec to be evaluated")
    model.need("text")
    task, size = model.layout.task, model.codec.config.image_size
    needed = options.count * options.candidates * size**2 * 3
    if needed > MOST_BYTES:
        raise InputError(
            f"--num_prompts {options.count}: images of {size} pixels, {options.candidates} for each"
            f" prompt, take {needed / 2**30:.0f} GiB at once, expected at most {MOST_BYTES >> 30}"
        )
    if options.rerank_with and task != "text_to_image":
        raise InputError(f"--rerank_with is for a bundle of text_to_image, not of {task}")
    warn_if_unlearned(model)
    if task == "caption":
        return _caption(model, options)
    if task == "super_resolution":
        return _super_resolution(model, options)
    return _generate(model, options)


def higher_is_better(task: str | None) -> dict[str, bool]:
    """See `Benchmark`: shares of what is right, and of super-resolution the MSE of the model."""
    generated = ("generated", *(f"generated_{language}" for language in LANGUAGES))
    names = (*ATTRIBUTES, "all")
    rows = {
        "text_to_image": [f"{row}/{name}" for row in generated for name in names],
        "caption": [f"said/{name}" for name in (*names, "colour_and_shape")],
        "super_resolution": ["squared_error/sampled", "squared_error/enlarged"],
    }.get(task or "", [])
    higher = task != "super_resolution"
    return {f"{split}/{row}": higher for split in NAMES.values() for row in rows}


def table(report: Mapping[str, Mapping]) -> str:
    """The numbers of a report, by split and row, as lines for people."""
    rows = [
        (f"{split} {name}".replace("_", " "), row)
        for split, of_split in report.items()
        for name, row in of_split.items()
        if isinstance(row, Mapping)
    ]
    widths = {name: max(12, len(name) + 2) for name in rows[0][1]}
    heads = [f"{name.replace('_', ' '):>{width}}" for name, width in widths.items()]
    lines = [f"{'':24}" + "".join(heads)]
    for name, row in rows:
        cells = [f"{row[column]:{width}.3f}" for column, width in widths.items()]
        lines.append(f"{name:24}" + "".join(cells))
    return "\n".join(lines)


def warn_if_unlearned(model: CogView) -> None:
    """Warns on standard error where a bundle has not learned captioned shapes at all.

    The judge has to recognise at least some true drawings after they went through the image
    tokenizer, and the text tokenizer needs tokens for their captions.
    """
    assert model.text is not None  # `run` has refused such a bundle
    size, codec = model.codec.config.image_size, model.codec.config
    fresh = list(fresh_scenes(TRIED, 0))
    scenes = [scene for each in fresh for scene in each.scenes]
    images = model.decode(model.encode(np.concatenate([each.drawings(size) for each in fresh])))
    right = sum(judge(*pair).all for pair in zip(images, scenes, strict=True))
    reasons = []
    if not right:
        reasons.append(
            f"of {len(scenes)} true drawings its codec ({codec.image_size} pixels,"
            f" {codec.codebook} codes) leaves none that the judge recognises"
        )
    if unknown := [text for each in fresh for text in each.texts if model.text.lacks(text)]:
        reasons.append(f"its text tokenizer has no pieces for such captions as {unknown[0]!r}")
    if reasons:
        print(
            f"the bundle has not learned captioned shapes: {', and '.join(reasons)}. The benchmark"
            " says little of it",
            file=sys.stderr,
        )


# Text to image.


def _generate(model: CogView, options: Options) -> Report:
    score = _scorer(options.rerank_with, options) if options.rerank_with else None
    total = 2 * options.count * options.candidates
    with Progress(total, "evaluate", unit="image", per_minute=True) as progress:

        def generate(texts: Sequence[str]) -> np.ndarray:
            codes = model.generate_codes(
                texts,
                options.candidates,
                options.seed,
                sampling=options.sampling(model),
                batch_size=options.batch_size,
                progress=progress.update,
            )
            return np.stack([model.decode(row) for row in codes])

        return generation_report(
            generate,
            lambda images: model.decode(model.encode(images)),
            size=model.codec.config.image_size,
            count=options.count,
            seed=options.seed,
            score=score,
        )


def _scorer(bundle: str, options: Options) -> Callable[[np.ndarray, Sequence[str]], np.ndarray]:
    """The CapLoss of a caption bundle, as `generation_report` calls it."""
    model = load_scorer(bundle, dtype=options.precision)

    def score(images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        with Progress(len(texts), "rerank", unit="image", per_minute=True) as progress:
            return model.score(
                images, texts, batch_size=options.batch_size, progress=progress.update
            )

    return score


def generation_report(
    generate: Callable[[Sequence[str]], np.ndarray],
    reconstruct: Callable[[np.ndarray], np.ndarray],
    *,
    size: int,
    count: int,
    seed: int,
    score: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None = None,
) -> Report:
    """Shares of generated images that are right, by attribute, beside the ceiling.

    Prompts alternate between English and Chinese and depend on `seed` alone. The ceiling is the
    judge's verdict on reconstructions of true drawings of the same scenes: no image made of codes
    can be expected to do better.

    With `score`, the report also has the best of 1, 2, 4 ... candidates, up to all that `generate`
    returns for a prompt. A smaller number than all splits the candidates into groups of that size,
    each of which chooses its own best.

    Args:
        generate: prompts -> uint8 images [n, candidates, size, size, 3].
        reconstruct: uint8 images [n, size, size, 3] through the image tokenizer and back.
        size: rows and columns of an image.
        count: prompts over seen pairs of colour and shape, and as many over held-out ones.
        seed: of the scenes.
        score: images [n, size, size, 3] and their prompts -> float [n], lower is better.

    Returns:
        {"seen" and "held_out": {"prompts": how many, "generated", "generated_en", "generated_zh",
        "ceiling", and with `score` "best_of_1", "best_of_2" ...: {attribute: share}}}. Without
        `score` all candidates count alike.
    """
    report = {}
    for fresh in fresh_scenes(count, seed):
        images = generate(fresh.texts)
        verdicts = [
            [judge(image, scene) for image in row]
            for row, scene in zip(images, fresh.scenes, strict=True)
        ]
        by_language = {
            f"generated_{language}": shares(
                verdict
                for row, spoken in zip(verdicts, fresh.languages, strict=True)
                if spoken == language
                for verdict in row
            )
            for language in LANGUAGES
        }
        best = {}
        if score is not None:
            texts = [text for text in fresh.texts for _ in range(images.shape[1])]
            scores = score(images.reshape(-1, *images.shape[2:]), texts).reshape(images.shape[:2])
            best = _best_of(verdicts, scores)
        true = fresh.drawings(size)
        report[fresh.name] = {
            "prompts": count,
            "generated": shares(verdict for row in verdicts for verdict in row),
            **by_language,
            **best,
            "ceiling": shares(
                judge(image, scene)
                for image, scene in zip(reconstruct(true), fresh.scenes, strict=True)
            ),
        }
    return report


def _best_of(verdicts: Sequence[Sequence[Verdict]], scores: np.ndarray) -> dict[str, dict]:
    """{"best_of_K": shares} of the candidates with the lowest scores; scores [n, candidates]."""
    candidates, of, best = scores.shape[1], 1, {}
    while of <= candidates:
        groups = range(0, candidates - of + 1, of)
        best[f"best_of_{of}"] = shares(
            row[start + int(np.argmin(own[start : start + of]))]
            for row, own in zip(verdicts, scores, strict=True)
            for start in groups
        )
        of *= 2
    return best


# Captions.


def _caption(model: CogView, options: Options) -> Report:
    with Progress(2 * options.count, "evaluate", unit="image", per_minute=True) as progress:

        def caption(images: np.ndarray) -> list[str]:
            return model.caption(
                images,
                options.seed,
                sampling=options.sampling(model),
                batch_size=options.batch_size,
                progress=progress.update,
            )

        size = model.codec.config.image_size
        return caption_report(caption, size=size, count=options.count, seed=options.seed)


def caption_report(
    caption: Callable[[np.ndarray], Sequence[str]], *, size: int, count: int, seed: int
) -> Report:
    """Shares of captions that are right, by attribute, for true drawings that are fresh.

    "colour_and_shape" is the share that names both of every object.

    Args:
        caption: uint8 images [n, size, size, 3] -> a text each, in either language.
        size: rows and columns of an image.
        count: drawings of seen pairs of colour and shape, and as many of held-out ones.
        seed: of the drawings.

    Returns:
        {"seen" and "held_out": {"drawings": how many, "said": {attribute: share}}}.
    """
    report = {}
    for fresh in fresh_scenes(count, seed):
        texts = caption(fresh.drawings(size))
        verdicts = [said(text, scene) for text, scene in zip(texts, fresh.scenes, strict=True)]
        pairs = np.mean([verdict.colour and verdict.shape for verdict in verdicts])
        row = shares(verdicts) | {"colour_and_shape": float(pairs)}
        report[fresh.name] = {"drawings": count, "said": row}
    return report


def said(text: str, scene: Scene) -> Verdict:
    """Which attributes of a scene a text names rightly; none where it is no caption of shapes."""
    try:
        named = parse_caption(text)
    except InputError:
        return Verdict(*[False] * 6)
    colours, shapes = zip(*named.things, strict=True)
    true_colours, true_shapes = zip(*scene.things, strict=True)
    return Verdict(
        background=named.background == scene.background,
        count=len(named.objects) == len(scene.objects),
        position=named.centres == scene.centres,
        size=named.size == scene.size,
        colour=colours == true_colours,
        shape=shapes == true_shapes,
    )


# Super-resolution.


def _super_resolution(model: CogView, options: Options) -> Report:
    size, count = model.super_resolution.sizes[0], options.count
    with opened_upsampler(model, options, size, 2 * count) as upsampler:
        return super_resolution_report(*upsampler, size=size, count=count, seed=options.seed)


def super_resolution_report(
    upsample: Callable[[np.ndarray, Sequence[str]], np.ndarray],
    reconstruct: Callable[[np.ndarray], np.ndarray],
    *,
    size: int,
    count: int,
    seed: int,
    rounds: int = ROUNDS,
) -> Report:
    """MSE of upsampled drawings against the same drawings in full size, by method.

    The errors are of pixel values from 0 to 255. `upsampled_images` says what the names of the
    methods mean.

    Args:
        upsample, reconstruct: see `Upsampler`.
        size: rows and columns of the small drawings.
        count: drawings of seen pairs of colour and shape, and as many of held-out ones.
        seed: of the drawings.
        rounds: of back-projection.

    Returns:
        {"seen" and "held_out": {"drawings": how many, "squared_error": {name: MSE}}}.
    """
    upsampler, report = Upsampler(upsample, reconstruct), {}
    for fresh in fresh_scenes(count, seed):
        small, true = fresh.drawings(size), fresh.drawings(2 * size)
        images = upsampled_images(
            upsampler, small, true, fresh.texts, rounds=rounds, back_project=("bilinear",)
        )
        errors = {name: mean_squared_error(each, true) for name, each in images.items()}
        report[fresh.name] = {"drawings": count, "squared_error": errors}
    return report
