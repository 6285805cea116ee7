"""Captions of images, and CapLoss of images and texts, into a folder."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.commands.resumable_output import AGAIN
from cogview_jax.commands.sample_inputs import (
    JobOptions,
    need_images,
    need_one_each,
    paired,
    read_images,
)
from cogview_jax.commands.sample_outputs import write_grid, write_lines
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load_scorer
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.progress import Progress
from cogview_jax.sampling.options import SamplingConfig


def caption(bundle: str, out: str, images: Sequence[str], options: JobOptions) -> None:
    """Writes captions: OUT/captions.jsonl, a line an image, and OUT/grid.png.

    Args:
        bundle: of a transformer trained for captions.
        out: the folder to write to.
        images: files; their centred square is read.
        options: of the job.

    Raises:
        InputError: an image cannot be read, more than one caption each is asked for, or the bundle
            is of another task.
    """
    need_images(images, "caption")
    need_one_each(options, "caption")
    options.settings.over(SamplingConfig()).need_no_guidance("a caption")
    model = options.load(bundle, "caption")
    pixels = read_images(images, model.codec.config.image_size)
    options = options.over(model.captioning.default_sampling)
    with Progress(len(images), "caption", unit="image", per_minute=True) as progress:
        texts = model.caption(
            pixels,
            options.sampling.seed,
            sampling=options.sampling.sampling,
            batch_size=options.sampling.batch_size,
            progress=progress.update,
        )
    lines = [
        {"image": file, "caption": text, "seed": options.sampling.seed}
        for file, text in zip(images, texts, strict=True)
    ]
    _write(Path(out), "captions", lines, pixels, texts)


def rerank(
    bundle: str, out: str, images: Sequence[str], prompts: Sequence[str], options: JobOptions
) -> None:
    """Scores images by their texts' CapLoss: OUT/scores.jsonl, and OUT/grid.png by rank.

    A line has image, prompt, score, and rank among the images of the same prompt, from 1 for the
    best. Lines stand in the order of the images.

    Args:
        bundle: of a transformer trained for captions.
        out: the folder to write to.
        images: files; their centred square is read.
        prompts: what each shows, or one for all.
        options: of the job; nothing is sampled.

    Raises:
        InputError: an image cannot be read, the prompts are not as many as the images or do not
            fit, the bundle is of another task, or guidance is asked for.
    """
    texts = paired(images, prompts, "rerank")
    need_one_each(options, "rerank")
    options.settings.over(SamplingConfig()).need_no_guidance("a score")
    scorer = scorer_of(bundle, prompts, options)
    pixels = read_images(images, scorer.codec.config.image_size)
    scores = scores_of(scorer, pixels, texts, options)
    ranks = np.zeros(len(texts), int)
    for text in set(texts):
        alike = np.array([i for i, each in enumerate(texts) if each == text])
        ranks[alike[np.argsort(scores[alike], kind="stable")]] = np.arange(1, len(alike) + 1)
    lines = [
        {"image": file, "prompt": text, "score": float(score), "rank": int(rank)}
        for file, text, score, rank in zip(images, texts, scores, ranks, strict=True)
    ]
    order = np.argsort(ranks, kind="stable")
    captions = [f"{lines[i]['rank']}: {lines[i]['score']:.3f} {texts[i]}" for i in order]
    _write(Path(out), "scores", lines, pixels[order], captions)


def scorer_of(bundle: str, prompts: Sequence[str], options: JobOptions) -> CogView:
    """A caption bundle that can score these prompts: found out before anything is sampled."""
    scorer = load_scorer(bundle, dtype=options.precision, long_prompts=options.long_prompts)
    scorer.prompts.pieces_of(prompts)
    return scorer


def scores_of(
    scorer: CogView, images: np.ndarray, texts: Sequence[str], options: JobOptions
) -> np.ndarray:
    """CapLoss of each pair, float32 [b], of uint8 images [b, h, w, 3]; reports progress."""
    with Progress(len(texts), "rerank", unit="image", per_minute=True) as progress:
        return scorer.score(
            images, texts, batch_size=options.sampling.batch_size, progress=progress.update
        )


def _write(
    folder: Path,
    what: str,
    lines: Sequence[Mapping[str, Any]],
    images: np.ndarray,
    captions: Sequence[str],
) -> None:
    """FOLDER/WHAT.jsonl, then FOLDER/grid.png of the images and their captions."""
    with at_work(f"no {what} are kept: {AGAIN}"):
        write_lines(folder / f"{what}.jsonl", lines)
        write_grid(folder, images, captions)
    print(
        f"{counted(len(lines), what.removesuffix('s'))} in {folder}/{what}.jsonl", file=sys.stderr
    )
