"""Sampling images with a bundle into a folder: new ones, completed ones, larger ones."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.checkpoints.bundle import identity
from cogview_jax.commands.benchmark_layouts import (
    BenchmarkLayout,
    check_layout,
    write_layout,
)
from cogview_jax.commands.describe_images import scorer_of, scores_of
from cogview_jax.commands.resumable_output import ResumableOutput
from cogview_jax.commands.sample_inputs import (
    JobOptions,
    good_prompts,
    need_one_each,
    paired,
    read_images,
)
from cogview_jax.commands.sample_outputs import Sample, write_images
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import open_checked
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.bounds import MOST_CANDIDATES, MOST_IMAGES, MOST_ROUNDS, need_count
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions


@dataclass(frozen=True)
class Reranking:
    """Which of a prompt's images stay.

    bundle: the caption bundle whose CapLoss orders them (CogView, section 3.2). keep: how many of
    the best, None for all.
    """

    bundle: str
    keep: int | None = None

    def __post_init__(self):
        if self.keep is not None and self.keep < 1:
            raise InputError(f"--keep {self.keep}: expected at least 1")


@dataclass(frozen=True)
class Upsampling:
    """How larger images are made to agree with the given ones: see `CogView.super_resolve`."""

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
    options: JobOptions,
    reranking: Reranking | None = None,
    upsample_with: str | None = None,
    upsampling: Upsampling = Upsampling(),
    needed: int | None = None,
    layout: BenchmarkLayout | None = None,
) -> int:
    """Samples images into OUT/images/ and describes them in OUT/samples.jsonl and OUT/grid.png.

    With `reranking` a prompt's images come the best first, those beyond `keep` are dropped, and
    OUT/scores.jsonl lists what every one scored. With `upsample_with`, a bundle of
    super-resolution, those that stay are upsampled as `super_resolution` does with the same seed
    and `upsampling`; what they were is in OUT/small/. Everything is checked before the first file
    is written, samples.jsonl is written last, and a job that was killed goes on.

    Args:
        bundle, out, options, reranking, upsample_with, upsampling: see above.
        prompts: what to sample.
        needed: how many of the first prompts have to be good; all where None. Bad ones behind them
            are named on standard error and left out. The images of the others keep the numbers, and
            so the file names, that they would have beside them.
        layout: of the benchmark whose prompts these are: the images that stay are written into
            OUT/NAME as well, as its evaluator reads them.

    Returns:
        How many prompts were left out.

    Raises:
        InputError: a bundle, a number or a prompt that is needed is wrong.
    """
    need_count("number of images", len(prompts) * options.num_images, MOST_IMAGES, 0)
    if layout is not None:
        stay = (reranking and reranking.keep) or options.num_images
        check_layout(layout, stay, out, interrupted=(Path(out) / "unfinished").exists())
    # A wrong one is found before any is read, which may take minutes.
    if reranking is not None:
        open_checked(reranking.bundle, EVERY_PART, "caption")
    if upsample_with is not None:
        open_checked(upsample_with, EVERY_PART, "super_resolution")
    model, scorer, upsampler = options.load(bundle, "text_to_image"), None, None
    size, given = model.codec.config.image_size, len(prompts)
    good = good_prompts(model, prompts, needed)
    numbers, prompts = [number for number, _ in good], [prompt for _, prompt in good]
    if reranking is not None:
        scorer = _load_scorer(reranking, prompts, options, bundle, size)
    if upsample_with is not None:
        upsampler = _load_upsampler(upsample_with, prompts, options, size)
    options = options.over(model.generation.default_sampling)
    job = _job("text_to_image", bundle, options) | {"prompts": list(prompts)}
    images = ResumableOutput(Path(out) / "unfinished", job)
    samples = _samples([{"prompt": prompt} for prompt in prompts], options, numbers)

    def batches(which: list[int], on_progress: Callable[[int], None]) -> Iterator[np.ndarray]:
        requests = _requests([samples[i] for i in which], options)
        size = options.sampling.batch_size
        sampled = model.generation.sample_codes(requests, size)
        return _reported(model.generation.decoded(sampled, requests, size), on_progress)

    images.complete(_names(samples), "sample", batches)
    scored = None
    if scorer is not None and reranking is not None:
        every = np.stack([images.read(sample.name) for sample in samples])
        scores = scores_of(scorer, every, [sample.prompt for sample in samples], options)
        scored = _ranked(samples, scores, options.num_images, reranking.keep)
        samples = [sample for sample in scored if sample.file]
    larger = None
    if upsampler is not None and upsample_with is not None:
        job |= {"upsample_with": identity(upsample_with), "images": _names(samples)}
        job |= asdict(upsampling)
        larger = ResumableOutput(images.folder / "larger", job)
        every = np.stack([images.read(sample.name) for sample in samples])
        own = replace(options.sampling, sampling=None)  # the flags are of the base
        _upsample(upsampler, larger, every, samples, own, upsampling)
        samples = [replace(sample, small=f"small/{sample.name}.png") for sample in samples]
    write_images(out, images, samples, scored, larger)
    if layout is not None:
        read, each = (larger or images).read, len(samples) // len(numbers)
        starts = range(0, len(samples), each)
        of_prompts = ([read(s.name) for s in samples[i : i + each]] for i in starts)
        write_layout(out, layout, numbers, of_prompts)
    images.remove()
    return given - len(prompts)


def complete(
    bundle: str,
    out: str,
    images: Sequence[str],
    prompts: Sequence[str],
    keep_rows: int | None,
    options: JobOptions,
) -> None:
    """Keeps the upper rows of images and samples the rest; writes as `text_to_image` does.

    Args:
        bundle, out, options: as there.
        images: files; their centred square is taken.
        prompts: what each shows, or one for all.
        keep_rows: rows of codes that are kept; None for half of them.

    Raises:
        InputError: an image cannot be read, or the prompts are not as many as the images.
    """
    texts = paired(images, prompts, "complete")
    model = options.load(bundle)
    size, grid = model.codec.config.image_size, model.codec.config.grid
    rows = grid // 2 if keep_rows is None else keep_rows
    pixels = read_images(images, size)
    model.generation.prompt_rows(texts)  # refuses one that cannot be used
    options = options.over(model.generation.default_sampling)
    job = _job("complete", bundle, options) | {"keep_rows": rows} | _given(pixels, texts)
    output = ResumableOutput(Path(out) / "unfinished", job)
    samples = _samples(
        [
            {"prompt": text, "image": file, "keep_rows": rows}
            for file, text in zip(images, texts, strict=True)
        ],
        options,
    )

    def batches(which: list[int], on_progress: Callable[[int], None]) -> Iterator[np.ndarray]:
        requests = _requests([samples[i] for i in which], options)
        size = options.sampling.batch_size
        given = [i // options.num_images for i in which]
        sampled = model.generation.complete_codes(pixels, rows, requests, given, size)
        return _reported(model.generation.decoded(sampled, requests, size), on_progress)

    output.complete(_names(samples), "complete", batches)
    write_images(out, output, samples)
    output.remove()


def super_resolution(
    bundle: str,
    out: str,
    images: Sequence[str],
    prompts: Sequence[str],
    options: JobOptions,
    size: int | None = None,
    upsampling: Upsampling = Upsampling(),
) -> None:
    """Upsamples images to twice as many rows and columns; writes as `text_to_image` does.

    Args:
        bundle: of a transformer trained for super-resolution.
        out, options: as there; one result for each image.
        images: files; their centred square is taken.
        prompts: what each shows, or one for all; none for a model that has learned without text.
        size: the pixels a side at which the images are read; None for the codec's own if the
            bundle upsamples such images, else the smallest it does.
        upsampling: how it is done.

    Raises:
        InputError: an image cannot be read, the prompts are not as many as the images or do not
            fit, or the bundle is of another task or upsamples no images of that size.
    """
    texts = paired(images, prompts or [""], "super_resolution")
    need_one_each(options, "super_resolution")
    options.settings.over(SamplingConfig()).need_no_guidance("super-resolution")
    model = _load_upsampler(bundle, prompts, options, size)
    if not prompts and model.layout.region("text").length:
        raise InputError(
            f"no prompt: the model of {bundle} has learned with texts: give --prompt TEXT, one for"
            " each image or one for all"
        )
    size = model.super_resolution.sizes[0] if size is None else size
    pixels = read_images(images, size)
    options = options.over(model.super_resolution.default_sampling)
    job = _job("super_resolution", bundle, options) | _given(pixels, texts) | asdict(upsampling)
    output = ResumableOutput(Path(out) / "unfinished", job)
    given = [{"prompt": text, "image": file} for file, text in zip(images, texts, strict=True)]
    samples = _samples(given, options)
    _upsample(model, output, pixels, samples, options.sampling, upsampling)
    write_images(out, output, samples)
    output.remove()


def _load_scorer(
    reranking: Reranking, prompts: Sequence[str], options: JobOptions, bundle: str, size: int
) -> CogView:
    """A caption bundle that takes these prompts, and the images of `size` that `bundle` samples."""
    scorer = scorer_of(reranking.bundle, prompts, options)
    if reranking.keep is not None and reranking.keep > options.num_images:
        raise InputError(f"--keep {reranking.keep} is more than --num_images {options.num_images}")
    if size != (read_size := scorer.codec.config.image_size):
        raise InputError(
            f"{bundle} samples images of {size} pixels, {reranking.bundle} reads images of"
            f" {read_size}"
        )
    return scorer


def _load_upsampler(
    bundle: str, prompts: Sequence[str], options: JobOptions, size: int | None
) -> CogView:
    """A bundle of super-resolution that takes these prompts, and images of `size` if given."""
    model = options.load(bundle)
    model.prompts.pieces_of(prompts)
    try:
        model.super_resolution.plan(model.super_resolution.sizes[0] if size is None else size)
    except InputError as error:
        raise InputError(f"{bundle}: {error}") from error
    return model


def _upsample(
    model: CogView,
    output: ResumableOutput,
    pixels: np.ndarray,
    samples: Sequence[Sample],
    options: SamplingOptions,
    upsampling: Upsampling,
) -> None:
    """Upsamples `pixels`, uint8 [b, h, w, 3], into `output`, under the names of `samples`."""

    def batches(which: list[int], on_progress: Callable[[int], None]) -> Iterator[list[np.ndarray]]:
        return model.super_resolution.upsample(
            pixels[which],
            [samples[i].prompt for i in which],
            replace(options, progress=on_progress),
            **asdict(upsampling),
        )

    windows = len(model.super_resolution.plan(pixels.shape[1]).windows)
    output.complete(_names(samples), "super_resolution", batches, windows)


def _reported(
    batches: Iterator[np.ndarray], on_progress: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """The same batches; `on_progress` hears how many images each has."""
    for images in batches:
        yield images
        on_progress(len(images))


def _samples(
    given: Sequence[dict[str, Any]], options: JobOptions, numbers: Sequence[int] | None = None
) -> list[Sample]:
    """What a job samples: num_images for each of what is given.

    numbers: of what is given, in the names of the files; 0, 1 and so on where None.
    """
    need_count("number of images", len(given) * options.num_images, MOST_IMAGES, 0)
    numbers = range(len(given)) if numbers is None else numbers
    return [
        Sample(
            **fields,
            seed=options.sampling.seed,
            index=index,
            file=f"images/{number:05d}_{index:03d}.png",
        )
        for number, fields in zip(numbers, given, strict=True)
        for index in range(options.num_images)
    ]


def _requests(samples: Sequence[Sample], options: JobOptions) -> list[SamplingRequest]:
    config = options.sampling.config()
    return [SamplingRequest(each.prompt, each.seed, each.index, config) for each in samples]


def _names(samples: Sequence[Sample]) -> list[str]:
    return [sample.name for sample in samples]


def _ranked(
    samples: Sequence[Sample], scores: np.ndarray, num_images: int, keep: int | None
) -> list[Sample]:
    """The samples with score and rank, each prompt's best first; beyond `keep` without a file."""
    ranked = []
    for start in range(0, len(samples), num_images):
        order = np.argsort(scores[start : start + num_images], kind="stable")
        for rank, i in enumerate(map(int, start + order), 1):
            sample = replace(samples[i], score=float(scores[i]), rank=rank)
            stays = keep is None or rank <= keep
            ranked.append(sample if stays else replace(sample, file=None))
    return ranked


def _job(task: str, bundle: str, options: JobOptions) -> dict[str, Any]:
    """What an image depends on, whatever the task; not how many there are, nor the batch."""
    return {
        "task": task,
        "bundle": identity(bundle),
        "seed": options.sampling.seed,
        "sampling": asdict(options.sampling.config()),
        "precision": options.precision,
    }


def _given(pixels: np.ndarray, texts: Sequence[str]) -> dict[str, Any]:
    """Images and prompts as part of a job."""
    return {
        "images": [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels],
        "prompts": list(texts),
    }
