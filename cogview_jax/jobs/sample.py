"""Sampling from a bundle into a folder."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogview_jax.data.images import decode_image
from cogview_jax.data.records import BadRecord
from cogview_jax.data.transforms import center_crop
from cogview_jax.pipeline import CogView, load
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path, remove_leftovers
from cogview_jax.runtime.progress import Progress
from cogview_jax.sampling.filters import SamplingConfig
from cogview_jax.sampling.grid import caption_grid

#: The grid for people shows at most this many pictures.
SHOWN = 64


def read_prompts(given: Sequence[str], file: str | None) -> list[str]:
    """Prompts from flags, then from a file with one a line; blank lines are passed over.

    Raises:
        InputError: the file cannot be read, or there is no prompt at all.
    """
    prompts = list(given)
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompts {file} cannot be read as UTF-8 text: {error}") from error
        prompts += [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError("no prompt: give --prompt TEXT (repeatable) or --prompts FILE")
    return prompts


@dataclass(frozen=True)
class Draws:
    """How pictures are drawn, whatever of: see the flags of the door."""

    num_images: int = 1
    seed: int = 0
    sampling: SamplingConfig = SamplingConfig()
    batch_size: int | None = None
    precision: str = "float32"

    def __post_init__(self):
        if self.num_images < 1:
            raise InputError(f"--num_images {self.num_images}: expected at least 1")


@dataclass(frozen=True)
class Reranking:
    """Which of a prompt's pictures stay.

    bundle: the caption bundle whose CapLoss orders them (CogView, section 3.2). keep: how many of
    the best, None for all.
    """

    bundle: str
    keep: int | None = None

    def __post_init__(self):
        if self.keep is not None and self.keep < 1:
            raise InputError(f"--keep {self.keep}: expected at least 1")


def text_to_image(
    bundle: str,
    out: str,
    prompts: Sequence[str],
    draws: Draws,
    reranking: Reranking | None = None,
) -> None:
    """Draws pictures into OUT/images/ and describes them in OUT/samples.jsonl and OUT/grid.png.

    With `reranking` a prompt's pictures come the best first, those beyond `keep` are dropped, and
    OUT/scores.jsonl lists what every one scored. Everything is checked before the first file is
    written, and samples.jsonl is written last.
    """
    model, scorer = load(bundle, dtype=draws.precision), None
    if reranking is not None:
        model.need("transformer", "text", "codec")
        scorer = _scorer(reranking.bundle, prompts, draws)
        if reranking.keep is not None and reranking.keep > draws.num_images:
            raise InputError(
                f"--keep {reranking.keep} is more than --num_images {draws.num_images}"
            )
        drawn_size, read_size = (each.codec.config.image_size for each in (model, scorer))
        if drawn_size != read_size:
            raise InputError(
                f"{bundle} draws pictures of {drawn_size} pixels, {reranking.bundle} reads pictures"
                f" of {read_size}"
            )
    with Progress(len(prompts) * draws.num_images, "sample", unit="image") as progress:
        drawn = model.generate(
            prompts,
            draws.num_images,
            draws.seed,
            sampling=draws.sampling,
            batch_size=draws.batch_size,
            progress=progress.update,
        )
    scores = None
    if scorer is not None:
        pictures = np.stack([np.asarray(picture) for row in drawn for picture in row])
        texts = [prompt for prompt in prompts for _ in range(draws.num_images)]
        scores = _scores(scorer, pictures, texts, draws).reshape(len(prompts), -1)
    keep = None if reranking is None else reranking.keep
    _write(out, drawn, [{"prompt": prompt} for prompt in prompts], draws.seed, scores, keep)


def complete(
    bundle: str,
    out: str,
    images: Sequence[str],
    prompts: Sequence[str],
    keep_rows: int | None,
    draws: Draws,
) -> None:
    """Keeps the upper rows of pictures and draws the rest; writes as `text_to_image` does.

    Args:
        bundle, out, draws: as there.
        images: files; their centred square is taken.
        prompts: what each shows, or one for all.
        keep_rows: rows of codes that are kept; None for half of them.

    Raises:
        InputError: an image cannot be read, or the prompts are not as many as the images.
    """
    texts = _paired(images, prompts, "complete")
    model = load(bundle, dtype=draws.precision)
    model.need("transformer", "text", "codec")
    size, grid = model.codec.config.image_size, model.codec.config.grid
    rows = grid // 2 if keep_rows is None else keep_rows
    pixels = [read_image(file, size) for file in images]
    with Progress(len(images) * draws.num_images, "complete", unit="image") as progress:
        drawn = [
            model.complete(
                given,
                rows,
                text,
                draws.num_images,
                draws.seed,
                sampling=draws.sampling,
                batch_size=draws.batch_size,
                progress=progress.update,
            )
            for given, text in zip(pixels, texts, strict=True)
        ]
    given = [
        {"prompt": text, "image": file, "keep_rows": rows}
        for file, text in zip(images, texts, strict=True)
    ]
    _write(out, drawn, given, draws.seed)


def caption(bundle: str, out: str, images: Sequence[str], draws: Draws) -> None:
    """Says what pictures show: OUT/captions.jsonl, a line an image, and OUT/grid.png.

    Args:
        bundle: of a transformer trained for captions.
        out: the folder to write to.
        images: files; their centred square is read.
        draws: the seed, the sampling, the batch and the precision.

    Raises:
        InputError: an image cannot be read, more than one caption each is asked for, or the bundle
            is of another task.
    """
    _need_images(images, "caption")
    _need_one_each(draws, "caption")
    model = load(bundle, dtype=draws.precision)
    model.need("transformer", "text", "codec")
    model.need_task("caption")
    pixels = np.stack([read_image(file, model.codec.config.image_size) for file in images])
    with Progress(len(images), "caption", unit="image") as progress:
        texts = model.caption(
            pixels,
            draws.seed,
            sampling=draws.sampling,
            batch_size=draws.batch_size,
            progress=progress.update,
        )
    folder = _folder(out)
    _write_grid(folder, pixels, texts)
    lines = [
        {"image": file, "caption": text, "seed": draws.seed}
        for file, text in zip(images, texts, strict=True)
    ]
    _write_lines(folder / "captions.jsonl", lines)
    print(f"{len(lines)} captions in {folder}/captions.jsonl", file=sys.stderr)


def super_resolution(
    bundle: str,
    out: str,
    images: Sequence[str],
    prompts: Sequence[str],
    draws: Draws,
    size: int | None = None,
) -> None:
    """Draws pictures again in twice as many rows and columns; writes as `text_to_image` does.

    Args:
        bundle: of a transformer trained for super-resolution.
        out, draws: as there; one picture for each.
        images: files; their centred square is taken.
        prompts: what each shows, or one for all.
        size: the pixels a side at which the pictures are read; None for the smallest the bundle
            enlarges.

    Raises:
        InputError: an image cannot be read, the prompts are not as many as the images or do not
            fit, or the bundle is of another task or enlarges no pictures of that size.
    """
    texts = _paired(images, prompts, "super_resolution")
    _need_one_each(draws, "super_resolution")
    draws.sampling.need_no_guidance("super-resolution")
    model = load(bundle, dtype=draws.precision)
    model.need("transformer", "text", "codec")
    size = model.magnifiable()[0] if size is None else size
    plan = model.magnification(size)
    for text in prompts:
        model.pieces(text)
    pixels = np.stack([read_image(file, size) for file in images])
    total = len(images) * len(plan.windows)
    with Progress(total, "super_resolution", unit="window") as progress:
        drawn = model.super_resolve(
            pixels,
            texts,
            draws.seed,
            sampling=draws.sampling,
            batch_size=draws.batch_size,
            progress=progress.update,
        )
    given = [{"prompt": text, "image": file} for file, text in zip(images, texts, strict=True)]
    _write(out, [[picture] for picture in drawn], given, draws.seed)


def rerank(
    bundle: str, out: str, images: Sequence[str], prompts: Sequence[str], draws: Draws
) -> None:
    """Scores pictures by their texts' CapLoss: OUT/scores.jsonl, and OUT/grid.png by rank.

    A line has image, prompt, score, and rank among the pictures of the same prompt, from 1 for the
    best. Lines stand in the order of the images.

    Args:
        bundle: of a transformer trained for captions.
        out: the folder to write to.
        images: files; their centred square is read.
        prompts: what each shows, or one for all.
        draws: the batch and the precision.

    Raises:
        InputError: an image cannot be read, the prompts are not as many as the images or do not
            fit, the bundle is of another task, or what only drawing has is asked for.
    """
    texts = _paired(images, prompts, "rerank")
    _need_one_each(draws, "rerank")
    draws.sampling.need_no_guidance("a score")
    scorer = _scorer(bundle, prompts, draws)
    pixels = np.stack([read_image(file, scorer.codec.config.image_size) for file in images])
    scores = _scores(scorer, pixels, texts, draws)
    ranks = np.zeros(len(texts), int)
    for text in set(texts):
        alike = np.array([i for i, each in enumerate(texts) if each == text])
        ranks[alike[np.argsort(scores[alike], kind="stable")]] = np.arange(1, len(alike) + 1)
    lines = [
        {"image": file, "prompt": text, "score": float(score), "rank": int(rank)}
        for file, text, score, rank in zip(images, texts, scores, ranks, strict=True)
    ]
    folder, order = _folder(out), np.argsort(ranks, kind="stable")
    captions = [f"{lines[i]['rank']}: {lines[i]['score']:.3f} {texts[i]}" for i in order]
    _write_grid(folder, pixels[order], captions)
    _write_lines(folder / "scores.jsonl", lines)
    print(f"{len(lines)} scores in {folder}/scores.jsonl", file=sys.stderr)


def _scorer(bundle: str, prompts: Sequence[str], draws: Draws) -> CogView:
    """A caption bundle that can score these prompts: found out before anything is drawn."""
    scorer = load(bundle, dtype=draws.precision)
    scorer.need("transformer", "text", "codec")
    scorer.need_task("caption")
    for prompt in prompts:
        scorer.pieces(prompt)
    return scorer


def _scores(
    scorer: CogView, pictures: np.ndarray, texts: Sequence[str], draws: Draws
) -> np.ndarray:
    """CapLoss of each pair, float32 [b], of uint8 pictures [b, h, w, 3]; says how far it is."""
    with Progress(len(texts), "rerank", unit="image") as progress:
        return scorer.score(pictures, texts, batch_size=draws.batch_size, progress=progress.update)


def _need_images(images: Sequence[str], task: str) -> None:
    if not images:
        raise InputError(f"--task {task} needs a picture: --image FILE (repeatable)")


def _need_one_each(draws: Draws, task: str) -> None:
    if draws.num_images != 1:
        raise InputError(f"--num_images {draws.num_images}: --task {task} writes one line an image")


def _paired(images: Sequence[str], prompts: Sequence[str], task: str) -> list[str]:
    """A text for each image, of as many or of one for all."""
    _need_images(images, task)
    if len(prompts) not in (1, len(images)):
        raise InputError(
            f"{len(images)} images and {len(prompts)} prompts: expected one prompt for each, or one"
            " for all"
        )
    return list(prompts) * (len(images) // len(prompts))


def read_image(file: str, size: int) -> np.ndarray:
    """The centred square of a picture file, uint8 [size, size, 3]; InputError if there is none."""
    try:
        return center_crop(decode_image(Path(file).read_bytes(), file), size)
    except (OSError, BadRecord) as error:
        raise InputError(f"--image {file} cannot be read: {error}") from error


def _write(
    out: str,
    drawn: Sequence[Sequence[Image.Image]],
    given: Sequence[Mapping[str, Any]],
    seed: int,
    scores: np.ndarray | None = None,
    keep: int | None = None,
) -> None:
    """OUT/images/*.png, OUT/grid.png, OUT/scores.jsonl, and, last, OUT/samples.jsonl.

    drawn: the pictures of each input. given: what their lines say of it, the prompt first. scores:
    [inputs, pictures of each], lower is better: the best come first, and `keep` of them stay.
    """
    folder = _folder(out)
    lines, scored, kept = [], [], []
    for number, (row, fields) in enumerate(zip(drawn, given, strict=True)):
        order = range(len(row)) if scores is None else np.argsort(scores[number], kind="stable")
        for rank, index in enumerate(map(int, order), 1):
            line = {**fields, "index": index, "seed": seed, "file": None}
            if scores is not None:
                line["score"] = float(scores[number, index])
                scored.append(line | {"rank": rank})
            if keep is not None and rank > keep:
                continue
            file = f"images/{number:05d}_{index:03d}.png"
            with atomic_path(folder / file) as temporary:
                row[index].save(temporary)
            lines.append(line | {"file": file})
            kept.append(np.asarray(row[index]))
            if scores is not None:
                scored[-1]["file"] = file
    _write_grid(folder, kept, [line["prompt"] for line in lines])
    if scores is not None:
        _write_lines(folder / "scores.jsonl", scored)
    _write_lines(folder / "samples.jsonl", lines)
    print(f"{len(lines)} pictures in {folder}, together in {folder}/grid.png", file=sys.stderr)


def _folder(out: str) -> Path:
    """The folder to write to, without what a killed run left half-written."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    return folder


def _write_grid(folder: Path, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> None:
    with atomic_path(folder / "grid.png") as temporary:
        caption_grid(pictures[:SHOWN], captions[:SHOWN]).save(temporary)


def _write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(file) as temporary:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")
