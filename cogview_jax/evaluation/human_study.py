"""A study: images of several systems for the same captions, which people rate without knowing whose
they are (CogView, arXiv 2105.13290, figure 10 and its appendix on human evaluation).

A study is a folder that can be moved: `study.json` with the captions, the systems and the SHA-256
of every image, `images/SYSTEM/NUMBER.png`, and `ratings/RATER.jsonl` (`study_ratings`).
"""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cogview_jax.data.records import is_unicode
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import (
    atomic_path,
    check_folder_output,
    is_clutter,
    read_json,
    read_regular,
    write_json,
)
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.lock import locked

NAME, FORMAT = "study.json", 1
#: Systems of a study: a digit chooses the best.
FEWEST_SYSTEMS, MOST_SYSTEMS = 2, 8
#: Bytes of an image of a study.
_IMAGE_LIMIT = 256 << 20
_SYSTEM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


class Question(NamedTuple):
    """What is asked of each image: a score from 1 to `most`."""

    name: str
    text: str
    most: int


#: Those of the paper.
QUESTIONS = (
    Question("clarity", "Clarity of the image", 5),
    Question("texture", "Quality of the texture", 5),
    Question("relevance", "Relevance to the caption", 5),
    Question("overall", "Overall", 10),
)


@dataclass(frozen=True)
class System:
    """What made one image for each caption.

    Attributes:
        name: of `check_systems`.
        source: where the images came from, for people.
        sha256: of the file of each image.
    """

    name: str
    source: str
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study on disk.

    Attributes:
        folder: where it is.
        seed: of the orders in which raters see captions and images.
        captions: what the images should show.
        systems: two or more.
    """

    folder: Path
    seed: int
    captions: tuple[str, ...]
    systems: tuple[System, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the systems."""
        return tuple(system.name for system in self.systems)

    def caption_order(self, rater: str) -> list[int]:
        """The numbers of the captions in the order in which a rater sees them."""
        return self._shuffled(range(len(self.captions)), "captions", rater)

    def system_order(self, rater: str, caption: int) -> list[str]:
        """The names of the systems in the order in which a rater sees their images of a caption."""
        return self._shuffled(self.names, "systems", rater, caption)

    def _shuffled(self, items: Sequence[Any], *key: Any) -> list[Any]:
        """A random order that is the same on every machine and with every version of a library."""

        def place(item: Any) -> str:
            text = "\0".join(map(str, (self.seed, *key, item)))
            return hashlib.sha256(text.encode()).hexdigest()

        return sorted(items, key=place)

    def png(self, caption: int, system: str) -> bytes:
        """The file of an image, which has nothing but its pixels in it.

        Raises:
            InputError: it is not the file that the study was made with.
        """
        file = _image_file(self.folder, system, caption)
        expected = self.systems[self.names.index(system)].sha256[caption]
        try:
            data = read_regular(file, _IMAGE_LIMIT)
        except FileNotFoundError:
            raise InputError(f"{file} is missing: expected an image of the study") from None
        if hashlib.sha256(data).hexdigest() != expected:
            raise InputError(f"{file} is not the image that the study was made with")
        return data

    def pixels(self, caption: int, system: str) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of an image."""
        return np.asarray(Image.open(io.BytesIO(self.png(caption, system)), formats=("PNG",)))


def is_study(folder: str | Path) -> bool:
    """Whether a study is there; InputError where it cannot be made either."""
    folder = Path(folder)
    check_folder_output(folder, "--study")
    if (folder / NAME).is_file():
        return True
    if folder.is_dir() and any(not is_clutter(file.name) for file in folder.iterdir()):
        raise InputError(f"--study {folder} has no {NAME}: expected a study, or a new folder")
    return False


def open_study(folder: str | Path) -> Study:
    """A study, whose images are all looked at.

    Raises:
        InputError: there is none, or a file of it is missing or is another.
    """
    folder = Path(folder)
    file = folder / NAME
    if not file.is_file():
        raise InputError(
            f"--study {folder}: expected the folder of a study, which evaluate --benchmark figure10"
            f" makes; there is no {NAME}"
        )
    study = _study(folder, read_json(file))
    for system in study.systems:
        for caption in range(len(study.captions)):
            study.png(caption, system.name)
    return study


def _study(folder: Path, found: Any) -> Study:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{folder / NAME}: expected a study of format {FORMAT}")
    try:
        systems = tuple(
            System(str(each["name"]), str(each["source"]), tuple(map(str, each["sha256"])))
            for each in found["systems"]
        )
        study = Study(folder, int(found["seed"]), tuple(map(str, found["captions"])), systems)
        check_systems(study.names)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{folder / NAME} is damaged: {error!r}") from None
    if not all(map(is_unicode, study.captions)):
        raise InputError(f"{folder / NAME} is damaged: a caption is no text")
    if not study.captions or {len(each.sha256) for each in systems} != {len(study.captions)}:
        raise InputError(f"{folder / NAME} is damaged: expected an image of each caption")
    return study


def check_systems(names: Sequence[str]) -> None:
    """InputError unless these are names for the systems of a study."""
    for name in names:
        if not _SYSTEM_NAME.fullmatch(name):
            raise InputError(
                f"--system {name[:60]!r}: expected a name of up to 40 letters, digits, and . _ -"
            )
    if len({name.lower() for name in names}) < len(names):
        raise InputError(f"--system {', '.join(names)}: expected different names")
    if not FEWEST_SYSTEMS <= len(names) <= MOST_SYSTEMS:
        raise InputError(
            f"{len(names)} systems ({', '.join(names) or 'none'}): a study compares"
            f" {FEWEST_SYSTEMS} to {MOST_SYSTEMS}, each --system NAME=PATH"
        )


def write_study(
    folder: str | Path,
    captions: Sequence[str],
    sources: Mapping[str, str],
    images: Mapping[str, Iterable[UInt8[np.ndarray, "h w 3"]]],
    seed: int,
) -> Study:
    """Makes a study, whole or not at all.

    Args:
        folder: a new one.
        captions: one or more.
        sources: of each system by its name, where its images come from, for people.
        images: of each system by its name, one of each caption; they are asked for one by one.
        seed: of the orders in which raters see captions and images.

    Raises:
        InputError: there is a study already, or another process makes it.
    """
    folder = Path(folder)
    check_systems(list(images))
    lock = folder.absolute().with_name(f".{folder.name}.lock")
    with locked(lock, f"the study {folder}", "choose another --study"):
        if is_study(folder):
            raise InputError(f"--study {folder} is there already: choose another")
        remove_leftovers(folder.absolute().parent)
        with atomic_path(folder) as temporary:
            systems = []
            for name, each in images.items():
                (temporary / "images" / name).mkdir(parents=True)
                hashes = []
                for caption, (_, pixels) in enumerate(zip(captions, each, strict=True)):
                    # Pixels alone: what else a file says would tell whose it is.
                    data = io.BytesIO()
                    Image.fromarray(pixels).save(data, "PNG")
                    _image_file(temporary, name, caption).write_bytes(data.getvalue())
                    hashes.append(hashlib.sha256(data.getvalue()).hexdigest())
                systems.append({"name": name, "source": sources[name], "sha256": hashes})
            about = {"format": FORMAT, "seed": seed, "captions": list(captions)}
            write_json(temporary / NAME, about | {"systems": systems})
    return open_study(folder)


def _image_file(folder: Path, system: str, caption: int) -> Path:
    return folder / "images" / system / f"{caption:04d}.png"
