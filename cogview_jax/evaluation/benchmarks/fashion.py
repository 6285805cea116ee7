"""How well a bundle makes what is asked of Fashion-MNIST: is the class right, the tone, the shape.

`--real` is the folder `test` that examples/fashion/make.py writes, with `train` beside it: from
the one come the prompts, from the other the judge learns the classes (`evaluation.fashion_judge`).
Beside the shares of generated images that are judged right are those of the true images, which tell
how often the judge itself is wrong, the ceiling that the image tokenizer sets, and chance.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogview_jax.data import fashion_set
from cogview_jax.data.fashion_set import CLASSES, LANGUAGES, Shown
from cogview_jax.data.records import BadRecord
from cogview_jax.evaluation.accepted_flags import SAMPLING
from cogview_jax.evaluation.benchmark import Measured, Options, Report
from cogview_jax.evaluation.candidates import Squares, encode_images, sample_asked
from cogview_jax.evaluation.captioned_sets import folder_captions
from cogview_jax.evaluation.fashion_judge import FashionJudge, Judged
from cogview_jax.evaluation.image_sets import ImageSet, good_images, open_folder, require_readable
from cogview_jax.evaluation.page import Images
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.progress import Progress

NEEDS_FLAGS = ("--real",)
NEEDS_PARTS, NEEDS_TASK = EVERY_PART, "text_to_image"
TAKES = ("num_prompts", *SAMPLING, "real")
FEATURES = ()
#: What is judged of an image.
RIGHT = ("class", "tone", "shape", "all")
#: The rows of a report that hold these shares, in the order of its table.
ROWS = ("generated", *(f"generated_{language}" for language in LANGUAGES))
_REFERENCES = ("ceiling", "true", "chance")
#: Images that the page shows.
_SHOWN = 40
_EXPECTED = "expected the folder test that examples/fashion/make.py writes, with train beside it"


class Asked(NamedTuple):
    """What images are asked for: numbers of classes, tones and shapes, and languages; each [n]."""

    labels: np.ndarray
    tones: np.ndarray
    shapes: np.ndarray
    languages: np.ndarray


def read_back(texts: Sequence[str], folder: str) -> Asked:
    """What captions say; InputError where one is none of the set, which names their folder."""
    try:
        read = [fashion_set.parse_caption(text) for text in texts]
    except InputError as error:
        raise InputError(f"--real {folder}: {_EXPECTED}; {error}") from error
    shown, languages = zip(*read, strict=True)
    labels, tones, shapes = np.array(shown, int).T
    return Asked(labels, tones, shapes, np.array(languages))


def learned_judge(folder: Path) -> FashionJudge:
    """A judge that has learned from all captioned pictures of a folder.

    Raises:
        InputError: there is no such folder, no picture in it, or a caption is none of the set.
    """
    source = open_folder(str(folder), "--real, train beside it,", captions=True)
    pictures, texts = [], []
    with Progress(len(source), "judge", unit="picture") as progress:
        for number in range(len(source)):
            try:
                record = source[number]
                pictures.append(record.image)
                texts.append(record.captions[0])
            except BadRecord:
                pass  # The judge learns from what is left.
            progress.update()
    if not pictures:
        raise InputError(f"--real: {_EXPECTED}; no picture of {folder} can be read")
    return FashionJudge(pictures, read_back(texts, str(folder)).labels)


def run(model: CogView, options: Options) -> Measured:
    """Measures a bundle of text_to_image on captions of `options.count` of the test pictures.

    Raises:
        InputError: the bundle lacks a part or is of another task, or `--real` is not the folder
            that is expected.
    """
    real, folder = options.images.real, Path(options.unfinished)
    if real is None:
        raise InputError(f"--benchmark fashion needs --real: {_EXPECTED}")
    captioned = folder_captions(real, options.count, options.seed)
    asked = read_back(captioned.texts, real)
    require_readable(captioned.images, "--real")
    model.prompts.pieces_of(captioned.texts)
    judge = learned_judge(Path(real).resolve().parent / "train")
    # Nothing the user may have got wrong is left.
    generated = sample_asked(model, captioned.texts, 1, folder / "generated", options)
    decoded = encode_images(
        model,
        Squares(captioned.images, model.codec.config.image_size),
        folder / "codes",
        bundle=options.bundle,
        precision=options.precision,
    )
    judged = _judged(judge, generated)
    report: Report = {
        "pictures": captioned.name,
        "prompts": len(captioned.texts),
        "judge_learned_from": judge.learned_from,
        "generated": shares(judged, asked),
    }
    for language in LANGUAGES:
        if (of := asked.languages == language).any():
            report[f"generated_{language}"] = shares(judged, asked, of)
    report["ceiling"] = shares(_judged(judge, decoded), asked)
    report["true"] = shares(_judged(judge, captioned.images), asked)
    report["chance"] = chance(asked)
    report["class_by_class"] = {
        name: shares(judged, asked, of)["class"]
        for label, (name, _) in enumerate(CLASSES)
        if (of := asked.labels == label).any()
    }
    return Measured(report, [_shown(generated, judged, asked, captioned.texts)])


def _judged(judge: FashionJudge, images: ImageSet) -> Judged:
    """What the images of a set show; -1 throughout of those that cannot be read."""
    good = good_images(images, range(len(images)))
    found = np.full((3, len(images)), -1)
    found[:, list(good)] = judge(list(good.values()))
    return Judged(*found)


def shares(judged: Judged, asked: Asked, rows: np.ndarray | slice = slice(None)) -> Report:
    """The shares of what is judged right, of some of the images."""
    right = np.stack(judged) == np.stack(asked[:3])
    right = np.concatenate([right, right.all(axis=0, keepdims=True)])[:, rows]
    return dict(zip(RIGHT, right.mean(axis=1).tolist(), strict=True))


def chance(asked: Asked) -> Report:
    """The shares that would be right of images that are as various, but do not heed the prompt.

    Each is the probability that two prompts, chosen at random, ask for the same.
    """
    asked_for = np.stack(asked[:3], axis=1)
    probabilities = []
    for columns in ([0], [1], [2], [0, 1, 2]):
        _, counts = np.unique(asked_for[:, columns], axis=0, return_counts=True)
        probabilities.append(float(np.sum((counts / len(asked_for)) ** 2)))
    return dict(zip(RIGHT, probabilities, strict=True))


def _shown(images: ImageSet, judged: Judged, asked: Asked, texts: Sequence[str]) -> Images:
    """Some of the images, with what the judge takes each for where that is wrong."""
    pictures = good_images(images, range(min(_SHOWN, len(images))))
    captions = []
    for number in pictures:
        found, wanted = (Shown(*(int(row[number]) for row in all_[:3])) for all_ in (judged, asked))
        captions.append(texts[number])
        if found != wanted:
            seen = fashion_set.caption(found, "en") if found.tone >= 0 else "nothing"
            captions[-1] += f" (judged: {seen})"
    return Images("Generated images", list(pictures.values()), captions)


def table(report: Mapping[str, Any]) -> str:
    """The shares as lines for people."""
    lines = [f"{'':20}" + "".join(f"{part:>8}" for part in RIGHT)]
    for row in (*ROWS, *_REFERENCES):
        if row in report:
            values = "".join(f"{report[row][part]:8.3f}" for part in RIGHT)
            lines.append(f"{row.replace('_', ' '):20}{values}")
    count = report["prompts"]
    lines.append(f"{count} prompts: the standard error of a share is up to {0.5 / count**0.5:.3f}")
    return "\n".join(lines)
