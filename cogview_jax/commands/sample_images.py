"""Drawing pictures with a bundle into a folder."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.checkpoints.bundle import identity
from cogview_jax.commands.describe_images import load_scorer, scores_of
from cogview_jax.commands.resumable_output import Unfinished
from cogview_jax.commands.sample_inputs import (
    Draws,
    good_prompts,
    need_one_each,
    paired,
    read_images,
)
from cogview_jax.commands.sample_outputs import write_pictures
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.bounds import MOST_CANDIDATES, MOST_PICTURES, MOST_ROUNDS, need_count
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.filters import SamplingConfig


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


@dataclass(frozen=True)
class Enlarging:
    """How enlarged pictures are kept to the given ones: arguments of `CogView.enlarge`."""

    window_candidates: int | None = None
    back_projection: int | None = None

    def __post_init__(self):
        bounds = {"window_candidates": (MOST_CANDIDATES, 1), "back_projection": (MOST_ROUNDS, 0)}
        for name, (most, least) in bounds.items():
            if getattr(self, name) is not None:
                need_count(f"--{name}", getattr(self, name), most, least)


def text_to_image(
    bundle: str,
    out: str,
    prompts: Sequence[str],
    draws: Draws,
    reranking: Reranking | None = None,
    magnify_with: str | None = None,
    enlarging: Enlarging = Enlarging(),
    needed: int | None = None,
) -> int:
    """Draws pictures into OUT/images/ and describes them in OUT/samples.jsonl and OUT/grid.png.

    With `reranking` a prompt's pictures come the best first, those beyond `keep` are dropped, and
    OUT/scores.jsonl lists what every one scored. With `magnify_with`, a bundle of super-resolution,
    those that stay are drawn again in twice as many rows and columns, as `super_resolution` does
    with the same seed and `enlarging`; what they were lies in OUT/small/. Everything is
    checked before the first file is written, samples.jsonl is written last, and a job that was
    killed goes on.

    Args:
        bundle, out, reranking, magnify_with, enlarging: see above.
        prompts: what to draw.
        draws: how.
        needed: how many of the first prompts have to be good; all where None. Bad ones behind them
            are named on standard error and left out. The pictures of the others keep the numbers,
            and so the file names, that they would have beside them.

    Returns:
        How many prompts were left out.

    Raises:
        InputError: a bundle, a number or a prompt that is needed is wrong.
    """
    need_count("number of pictures", len(prompts) * draws.num_images, MOST_PICTURES, 0)
    model, scorer, magnifier = draws.load(bundle), None, None
    model.need("transformer", "text", "codec")
    model.need_task("text_to_image")
    given, good = len(prompts), good_prompts(model, prompts, needed)
    numbers, prompts = [number for number, _ in good], [prompt for _, prompt in good]
    if reranking is not None:
        scorer = load_scorer(reranking.bundle, prompts, draws)
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
    if magnify_with is not None:
        magnifier = _load_magnifier(magnify_with, prompts, draws, model.codec.config.image_size)
    job = _job("text_to_image", bundle, draws) | {"prompts": list(prompts)}
    pictures = Unfinished(Path(out) / "unfinished", job)
    lines = _lines([{"prompt": prompt} for prompt in prompts], draws, numbers)

    def batches(which: list[int], told: Callable[[int], None]) -> Iterator[np.ndarray]:
        return _decoded(
            model,
            model.draw(
                [lines[i]["prompt"] for i in which],
                [lines[i]["index"] for i in which],
                draws.seed,
                sampling=draws.sampling,
                batch_size=draws.batch_size,
            ),
            told,
        )

    pictures.draw(_names(lines), "sample", batches)
    scored = None
    if scorer is not None:
        every = np.stack([pictures.read(name) for name in _names(lines)])
        scores = scores_of(scorer, every, [line["prompt"] for line in lines], draws)
        scored = _ranked(lines, scores, draws.num_images, reranking.keep)
        lines = [line for line in scored if line["file"]]
    larger = None
    if magnifier is not None:
        job |= {"magnify_with": identity(magnify_with), "pictures": _names(lines)}
        job |= asdict(enlarging)
        larger = Unfinished(pictures.folder / "larger", job)
        every = np.stack([pictures.read(name) for name in _names(lines)])
        _enlarge(magnifier, larger, every, lines, draws, None, enlarging, "magnify")
        lines = [line | {"small": f"small/{Path(line['file']).name}"} for line in lines]
    write_pictures(out, pictures, lines, scored, larger)
    pictures.remove()
    return given - len(prompts)


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
    texts = paired(images, prompts, "complete")
    model = draws.load(bundle)
    model.need("transformer", "text", "codec")
    size, grid = model.codec.config.image_size, model.codec.config.grid
    rows = grid // 2 if keep_rows is None else keep_rows
    pixels = read_images(images, size)
    job = _job("complete", bundle, draws) | {"keep_rows": rows} | _given(pixels, texts)
    pictures = Unfinished(Path(out) / "unfinished", job)
    lines = _lines(
        [
            {"prompt": text, "image": file, "keep_rows": rows}
            for file, text in zip(images, texts, strict=True)
        ],
        draws,
    )

    def batches(which: list[int], told: Callable[[int], None]) -> Iterator[np.ndarray]:
        return _decoded(
            model,
            model.draw_rest(
                pixels,
                rows,
                [lines[i]["prompt"] for i in which],
                [lines[i]["index"] for i in which],
                draws.seed,
                sampling=draws.sampling,
                batch_size=draws.batch_size,
                which=[i // draws.num_images for i in which],
            ),
            told,
        )

    pictures.draw(_names(lines), "complete", batches)
    write_pictures(out, pictures, lines)
    pictures.remove()


def super_resolution(
    bundle: str,
    out: str,
    images: Sequence[str],
    prompts: Sequence[str],
    draws: Draws,
    size: int | None = None,
    temperature: float | None = None,
    enlarging: Enlarging = Enlarging(),
) -> None:
    """Draws pictures again in twice as many rows and columns; writes as `text_to_image` does.

    Args:
        bundle: of a transformer trained for super-resolution.
        out, draws: as there; one picture for each.
        images: files; their centred square is taken.
        prompts: what each shows, or one for all; none for a model that has learned without text.
        size: the pixels a side at which the pictures are read; None for the codec's own if the
            bundle enlarges such pictures, else the smallest it does.
        temperature: of the draws, whatever `draws` has; None for that of
            `CogView.super_resolution_sampling`.
        enlarging: how it is done.

    Raises:
        InputError: an image cannot be read, the prompts are not as many as the images or do not
            fit, or the bundle is of another task or enlarges no pictures of that size.
    """
    texts = paired(images, prompts or [""], "super_resolution")
    need_one_each(draws, "super_resolution")
    draws.sampling.need_no_guidance("super-resolution")
    model = _load_magnifier(bundle, prompts, draws, size)
    temperature = (
        model.super_resolution_sampling.temperature if temperature is None else temperature
    )
    draws = replace(draws, sampling=replace(draws.sampling, temperature=temperature))
    if not prompts and model.layout.region("text").length:
        raise InputError(
            f"no prompt: the model of {bundle} has learned with texts: give --prompt TEXT, one for"
            " each image or one for all"
        )
    size = model.magnifiable()[0] if size is None else size
    pixels = read_images(images, size)
    job = _job("super_resolution", bundle, draws) | _given(pixels, texts) | asdict(enlarging)
    pictures = Unfinished(Path(out) / "unfinished", job)
    given = [{"prompt": text, "image": file} for file, text in zip(images, texts, strict=True)]
    lines = _lines(given, draws)
    _enlarge(model, pictures, pixels, lines, draws, draws.sampling, enlarging, "super_resolution")
    write_pictures(out, pictures, lines)
    pictures.remove()


def _load_magnifier(bundle: str, prompts: Sequence[str], draws: Draws, size: int | None) -> CogView:
    """A bundle of super-resolution that takes these prompts, and pictures of `size` if given."""
    model = draws.load(bundle)
    model.need("transformer", "text", "codec")
    for prompt in prompts:
        model.pieces(prompt)
    try:
        model.magnification(model.magnifiable()[0] if size is None else size)
    except InputError as error:
        raise InputError(f"{bundle}: {error}") from error
    return model


def _enlarge(
    model: CogView,
    pictures: Unfinished,
    pixels: np.ndarray,
    lines: Sequence[Mapping[str, Any]],
    draws: Draws,
    sampling: SamplingConfig | None,
    enlarging: Enlarging,
    label: str,
) -> None:
    """Draws `pixels`, uint8 [b, h, w, 3], again into `pictures`, under the names of `lines`."""

    def batches(which: list[int], told: Callable[[int], None]) -> Iterator[list[np.ndarray]]:
        return model.enlarge(
            pixels[which],
            [lines[i]["prompt"] for i in which],
            draws.seed,
            sampling=sampling,
            batch_size=draws.batch_size,
            progress=told,
            **asdict(enlarging),
        )

    windows = len(model.magnification(pixels.shape[1]).windows)
    pictures.draw(_names(lines), label, batches, windows)


def _decoded(
    model: CogView, drawn: Iterator[np.ndarray], told: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """The pictures of codes, batch by batch; `told` hears how many."""
    for codes in drawn:
        yield model.decode(codes, codes.shape[1])
        told(len(codes))


def _lines(
    given: Sequence[Mapping[str, Any]], draws: Draws, numbers: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The lines of samples.jsonl, num_images for each of what is given.

    numbers: of what is given, in the names of the files; 0, 1 and so on where None.
    """
    need_count("number of pictures", len(given) * draws.num_images, MOST_PICTURES, 0)
    numbers = range(len(given)) if numbers is None else numbers
    return [
        {
            **fields,
            "index": index,
            "seed": draws.seed,
            "file": f"images/{number:05d}_{index:03d}.png",
        }
        for number, fields in zip(numbers, given, strict=True)
        for index in range(draws.num_images)
    ]


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Under which names the pictures of lines are kept until all are there."""
    return [Path(line["file"]).stem for line in lines]


def _ranked(
    lines: Sequence[Mapping[str, Any]], scores: np.ndarray, num_images: int, keep: int | None
) -> list[dict[str, Any]]:
    """The lines with score and rank, each prompt's the best first; beyond `keep` without a file."""
    ranked = []
    for start in range(0, len(lines), num_images):
        order = np.argsort(scores[start : start + num_images], kind="stable")
        for rank, i in enumerate(map(int, start + order), 1):
            line = lines[i] | {"score": float(scores[i]), "rank": rank}
            stays = keep is None or rank <= keep
            ranked.append(line if stays else line | {"file": None})
    return ranked


def _job(task: str, bundle: str, draws: Draws) -> dict[str, Any]:
    """What a picture depends on, whatever of; not how many there are, nor the batch."""
    return {
        "task": task,
        "bundle": identity(bundle),
        "seed": draws.seed,
        "sampling": asdict(draws.sampling),
        "precision": draws.precision,
    }


def _given(pixels: np.ndarray, texts: Sequence[str]) -> dict[str, Any]:
    """Pictures and prompts as part of a job."""
    return {
        "images": [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels],
        "prompts": list(texts),
    }
