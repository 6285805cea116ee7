"""Evaluating a bundle into a JSON report."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from cogview_jax.checkpoints.bundle import identity
from cogview_jax.commands.describe_images import load_scorer, scores_of
from cogview_jax.commands.sample_inputs import Draws
from cogview_jax.evaluation.shapes_captions import captions_report
from cogview_jax.evaluation.shapes_enlarged import enlarged_report
from cogview_jax.evaluation.shapes_report import shapes_report, table
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.bounds import MOST_CANDIDATES, MOST_PROMPTS, need_count
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import check_file_output, write_json
from cogview_jax.runtime.progress import Progress
from cogview_jax.shapes.fresh import fresh_scenes
from cogview_jax.shapes.judge import judge

#: Bytes of pictures that a report may hold at once.
MOST_BYTES = 16 << 30
#: True drawings of which the judge must recognise some through the image tokenizer.
TRIED = 8


@dataclass(frozen=True)
class Candidates:
    """For each prompt `count` pictures, of which the caption bundle `bundle` chooses by CapLoss."""

    bundle: str
    count: int = 8

    def __post_init__(self):
        need_count("--candidates", self.count, MOST_CANDIDATES)


def shapes(
    bundle: str,
    out: str,
    *,
    prompts: int,
    draws: Draws,
    temperature: float | None = None,
    candidates: Candidates | None = None,
) -> None:
    """Writes to the file `out` how well a bundle does its task on the captioned shapes.

    text_to_image: how often it draws what captions say, and with `candidates` how often the best of
    several does; caption: how often it says what drawings show; super_resolution: how far its
    pictures are from true drawings of their size.

    Args:
        bundle: of a transformer for any of these tasks.
        out: the report.
        prompts: drawings or captions over seen pairs of colour and shape, and as many over held-out
            ones.
        draws: the seed of prompts and draws, the filters, the batch and the precision.
        temperature: of the draws; None for 1 in text_to_image, 0 for captions, and for
            super_resolution what `CogView.super_resolution_sampling` has.
        candidates: for text_to_image alone.

    Raises:
        InputError: a bundle lacks a part or is of another task, a number is too small, or `out` is
            a folder.
    """
    check_file_output(out, "--out")
    if prompts < 2:
        raise InputError(f"--num_prompts {prompts}: expected at least 2, one a language")
    each = 1 if candidates is None else candidates.count
    need_count("--num_prompts", prompts, MOST_PROMPTS // each)
    model = draws.load(bundle)
    if not {"codec", "transformer"} <= model.parts:
        raise InputError(f"bundle {bundle} needs a transformer and a codec to be evaluated")
    model.need("text")
    task, size = model.layout.task, model.codec.config.image_size
    drawn = prompts * each * size**2 * 3
    if drawn > MOST_BYTES:
        raise InputError(
            f"--num_prompts {prompts}: pictures of {size} pixels, {each} for each prompt, take"
            f" {drawn / 2**30:.0f} GiB at once, expected at most {MOST_BYTES >> 30}"
        )
    _say_if_unknown(model, bundle)
    if temperature is None and task == "super_resolution":
        temperature = model.super_resolution_sampling.temperature
    elif temperature is None:
        temperature = 0.0 if task == "caption" else 1.0
    sampling = replace(draws.sampling, temperature=temperature)
    draws = replace(draws, sampling=sampling)
    settings = {
        "bundle": identity(bundle),
        "seed": draws.seed,
        **asdict(sampling),
        "precision": draws.precision,
    }
    if candidates is not None and task != "text_to_image":
        raise InputError(f"--rerank_with is for a bundle of text_to_image, not of {task}")
    if task == "caption":
        report = _described(model, prompts, draws)
    elif task == "super_resolution":
        report = _enlarged(model, prompts, draws)
    else:
        if candidates is not None:
            settings |= {"rerank_with": identity(candidates.bundle)}
        report = _drawn(model, prompts, draws, candidates)
    print(table(report))
    with at_work("the report is not kept, but the table above is what it says"):
        write_json(out, {"benchmark": "shapes", "task": task, "settings": settings} | report)
    print(f"report in {out}", file=sys.stderr)


def _say_if_unknown(model: CogView, bundle: str) -> None:
    """Says so where captioned shapes are nothing the bundle has learned: the report is then idle.

    The judge has to recognise at least some true drawings once they went through the image
    tokenizer, and the text tokenizer must have pieces for what their captions say.
    """
    size, codec = model.codec.config.image_size, model.codec.config
    fresh = list(fresh_scenes(TRIED, 0))
    scenes = [scene for each in fresh for scene in each.scenes]
    pictures = model.decode(model.encode(np.concatenate([each.drawings(size) for each in fresh])))
    right = sum(judge(*pair).all for pair in zip(pictures, scenes, strict=True))
    whys = []
    if not right:
        whys.append(
            f"of {len(scenes)} true drawings its codec ({codec.image_size} pixels,"
            f" {codec.codebook} codes) leaves none that the judge recognises"
        )
    if unknown := [text for each in fresh for text in each.texts if model.text.lacks(text)]:
        whys.append(f"its text tokenizer has no pieces for such captions as {unknown[0]!r}")
    if whys:
        print(
            f"{bundle} has not learned captioned shapes: {', and '.join(whys)}. The benchmark says"
            " little of it",
            file=sys.stderr,
        )


def _drawn(model: CogView, prompts: int, draws: Draws, candidates: Candidates | None) -> dict:
    scorer = None if candidates is None else load_scorer(candidates.bundle, (), draws)
    count, size = 1 if candidates is None else candidates.count, model.codec.config.image_size
    with Progress(2 * prompts * count, "evaluate", unit="image", per_minute=True) as progress:

        def generate(texts: Sequence[str]) -> np.ndarray:
            codes = model.generate_codes(
                texts,
                count,
                draws.seed,
                sampling=draws.sampling,
                batch_size=draws.batch_size,
                progress=progress.update,
            )
            return np.stack([model.decode(row) for row in codes])

        def score(pictures: np.ndarray, texts: Sequence[str]) -> np.ndarray:
            return scores_of(scorer, pictures, texts, draws)

        return shapes_report(
            generate,
            lambda pictures: model.decode(model.encode(pictures)),
            size=size,
            prompts=prompts,
            seed=draws.seed,
            score=None if scorer is None else score,
        )


def _described(model: CogView, drawings: int, draws: Draws) -> dict:
    with Progress(2 * drawings, "evaluate", unit="image", per_minute=True) as progress:

        def describe(pictures: np.ndarray) -> list[str]:
            return model.caption(
                pictures,
                draws.seed,
                sampling=draws.sampling,
                batch_size=draws.batch_size,
                progress=progress.update,
            )

        size = model.codec.config.image_size
        return captions_report(describe, size=size, count=drawings, seed=draws.seed)


def _enlarged(model: CogView, drawings: int, draws: Draws) -> dict:
    size, pixels = model.magnifiable()[0], model.codec.config.downsampling
    windows = len(model.magnification(size).windows)
    with Progress(2 * drawings * windows, "evaluate", unit="window", per_minute=True) as progress:

        def enlarge(pictures: np.ndarray, texts: Sequence[str]) -> np.ndarray:
            larger = model.super_resolve(
                pictures,
                texts,
                draws.seed,
                sampling=draws.sampling,
                batch_size=draws.batch_size,
                progress=progress.update,
                back_projection=0,
            )
            return np.stack([np.asarray(picture) for picture in larger])

        def reconstruct(pictures: np.ndarray) -> np.ndarray:
            grid = pictures.shape[1] // pixels
            return model.decode(model.encode(pictures, grid), grid)

        return enlarged_report(enlarge, reconstruct, size=size, count=drawings, seed=draws.seed)
