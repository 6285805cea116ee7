"""Makes a study of what systems are given: bundles, folders of images, and true images."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cogview_jax.checkpoints.bundle import identity
from cogview_jax.checkpoints.step_bundle import is_bundle, located
from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources.source import captions_of
from cogview_jax.evaluation.benchmark import Options
from cogview_jax.evaluation.candidates import Selected, Squares, encode_images, sample_candidates
from cogview_jax.evaluation.captioned_sets import open_captioned
from cogview_jax.evaluation.human_study import Study, check_systems, write_study
from cogview_jax.evaluation.image_sets import ImageSet, SourceImages, open_folder
from cogview_jax.pipeline.load import load, open_checked
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.prompt import shown

#: Before the path of a bundle: the true images, through its image tokenizer.
CODEC = "codec:"


@dataclass(frozen=True)
class _System:
    """source: for people. open: the images, one of each caption."""

    source: str
    open: Callable[[], ImageSet]


def make_study(folder: str, systems: Mapping[str, str], options: Options) -> Study:
    """A new study; what is wrong with a flag is said before anything is sampled.

    The captions are those of `--prompt` and `--prompts`, or `--num_prompts` of the captioned images
    `--real` (or `--captions`).

    Args:
        folder: of the study.
        systems: by name: a bundle, which samples an image of each caption; a folder of captioned
            images, such as `sample` writes, of which the first of a caption is taken; or
            codec:BUNDLE, which is the true images, encoded and decoded: what the paper calls the
            recovered ground truth.
        options: of the benchmark.

    Raises:
        InputError: a system has no image of a caption, is none of the three, or has a bad name.
    """
    check_systems(list(systems))
    captions, true = _captions(options)
    found = {name: _system(name, path, captions, true, options) for name, path in systems.items()}
    sources = {name: system.source for name, system in found.items()}
    images = {name: _images(name, system, len(captions)) for name, system in found.items()}
    return write_study(folder, captions, sources, images, options.seed)


def _images(name: str, system: _System, count: int) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    # Opened only now, so that the model of one system is gone when that of the next is read.
    for image in system.open().read(range(count)):
        if isinstance(image, BadRecord):
            raise InputError(f"--system {name}: {image}")
        yield image


def _captions(options: Options) -> tuple[tuple[str, ...], ImageSet | None]:
    """The captions, and their true images where there are some."""
    asked = options.images
    if not asked.prompts and asked.real is None and asked.captions is None:
        raise InputError(
            "--benchmark figure10 makes a study of captions: expected --prompts FILE, or --real"
            " FOLDER with captioned images"
        )
    if not asked.prompts:
        chosen = open_captioned(
            asked.captions, asked.real, count=options.count, size=0, seed=options.seed
        )
        return tuple(map(_plain, chosen.texts)), chosen.images
    captions = tuple(dict.fromkeys(map(_plain, asked.prompts)))
    if asked.captions is not None:
        raise InputError("--captions and --prompts: expected one of them")
    return captions, None if asked.real is None else _captioned(asked.real, "--real", captions)


def _system(
    name: str, path: str, captions: tuple[str, ...], true: ImageSet | None, options: Options
) -> _System:
    flag = f"--system {name}"
    if path.startswith(CODEC):
        given = path.removeprefix(CODEC)
        bundle = _checked(given, flag, ("codec",), None)
        if true is None:
            raise InputError(f"{flag}={path} needs true images: expected --real FOLDER")
        for image in true.read(range(len(true))):
            if isinstance(image, BadRecord):
                raise InputError(f"{flag}={path} needs all true images: {image}")
        sha256 = identity(bundle)
        source = f"{true.name} through the image tokenizer of {given} ({sha256})"
        return _System(source, lambda: _recovered(name, bundle, sha256, true, options))
    if is_bundle(path):
        bundle = _checked(path, flag, EVERY_PART, "text_to_image")
        sha256 = identity(bundle)
        given = "".join(f", {key} {value}" for key, value in options.settings.given.items())
        source = f"samples of {path} ({sha256}), seed {options.seed}{given}"
        return _System(source, lambda: _sampled(name, bundle, sha256, captions, options))
    if not Path(path).is_dir():
        raise InputError(
            f"{flag}={path}: expected a bundle, a folder of captioned images, or {CODEC}BUNDLE;"
            " there is none"
        )
    images = _captioned(path, flag, captions)
    return _System(path, lambda: images)


def _checked(path: str, flag: str, parts: tuple[str, ...], task: str | None) -> str:
    try:
        path = located(path)
        open_checked(path, parts, task)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None
    return path


def _recovered(name: str, bundle: str, sha256: str, true: ImageSet, options: Options) -> ImageSet:
    model = load(bundle, dtype=options.precision, needs=("codec",))
    squares = Squares(true, model.codec.config.image_size)
    folder = Path(options.unfinished) / name
    return encode_images(model, squares, folder, bundle=sha256, precision=options.precision)


def _sampled(
    name: str, bundle: str, sha256: str, captions: tuple[str, ...], options: Options
) -> ImageSet:
    model = load(bundle, dtype=options.precision, needs=EVERY_PART, task="text_to_image")
    return sample_candidates(
        model,
        captions,
        1,
        Path(options.unfinished) / name,
        bundle=sha256,
        seed=options.seed,
        sampling=options.sampling(model),
        precision=options.precision,
        batch_size=options.batch_size,
    )


def _captioned(path: str, flag: str, captions: tuple[str, ...]) -> Selected:
    """The first image of each caption in a folder."""
    source = open_folder(path, flag, captions=True)
    numbers: dict[str, int] = {}
    for number in range(len(source)):
        try:
            texts = captions_of(source, number)
        except BadRecord:  # it has no caption, so it is the image of none
            continue
        for text in texts:
            numbers.setdefault(_plain(text), number)
    if missing := [caption for caption in captions if caption not in numbers]:
        raise InputError(
            f"{flag} {path} has no image of {len(missing)} of the {len(captions)} captions, such as"
            f" {shown(missing[0])}"
        )
    chosen = [numbers[caption] for caption in captions]
    return Selected(SourceImages(source, path), chosen, path)


def _plain(caption: str) -> str:
    return " ".join(caption.split())
