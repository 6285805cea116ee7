"""The embedded images: 256 concepts in four styles of emoji, and what each is called.

A caption names a concept and a style, in English ("butterfly in flat style") or Chinese
("扁平风格的蝴蝶"). It can be read back into both, so a judge knows what a prompt asks for.

A quarter of the pairs of a concept and a style is held out. Each concept and each style is seen in
training, those pairs never, so they measure composition.

The images lie in `assets/emoji`, one sheet a style: tiles of 64 x 64 pixels in rows of 16, in the
order of the concepts, on white. `examples/emoji/make.py` makes them; NOTICE beside them has the
licences.
"""

import dataclasses
import functools
import json
import threading
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from cogview_jax.data.images import decode_image, read_image_file
from cogview_jax.data.records import BadRecord
from cogview_jax.runtime.errors import InputError

FOLDER = Path(__file__).parents[1] / "assets" / "emoji"
#: Height and width of a tile in pixels, and tiles in a row of a sheet.
TILE, COLUMNS = 64, 16
LANGUAGES = ("en", "zh")
SPLITS = ("train", "held_out")
_HELD_OUT_PERIOD = 4
_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Concept:
    """What an image shows.

    Attributes:
        code: the code points of the emoji in hexadecimal, with hyphens and without the variation
            selector FE0F: "1f98b".
        en: its name in English, from the annotations of Unicode CLDR.
        zh: its name in Chinese, from the same.
    """

    code: str
    en: str
    zh: str


@dataclasses.dataclass(frozen=True)
class Style:
    """How an image is drawn.

    Attributes:
        name: the name of its sheet, and of the style in keys of records.
        en: what captions in English call it.
        zh: what captions in Chinese call it.
    """

    name: str
    en: str
    zh: str


#: The styles, in the order of their numbers.
STYLES = (
    Style("noto", "Noto", "Noto"),
    Style("flat", "flat", "扁平"),
    Style("3d", "3D", "立体"),
    Style("high_contrast", "high contrast", "高对比度"),
)


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """The concepts, in the order of their numbers."""
    entries = json.loads((FOLDER / "concepts.json").read_text(encoding="utf-8"))
    return tuple(Concept(**entry) for entry in entries)


def is_held_out(concept: int, style: int) -> bool:
    """Whether the pair of two numbers is held out: every fourth, in turn through the styles.

    Each concept is held out in exactly one of the four styles, and each style for a quarter of the
    concepts.
    """
    return (concept + style) % _HELD_OUT_PERIOD == 0


def pairs(split: str) -> tuple[tuple[int, int], ...]:
    """The numbers (concept, style) of the images of a split, "train" or "held_out".

    Raises:
        InputError: there is no such split.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: choices are {', '.join(SPLITS)}")
    return tuple(
        (concept, style)
        for concept in range(len(concepts()))
        for style in range(len(STYLES))
        if is_held_out(concept, style) == (split == "held_out")
    )


def caption(concept: Concept, style: Style, language: str) -> str:
    """Says what an image shows and how it is drawn, in English ("en") or Chinese ("zh").

    Raises:
        InputError: there is no such language.
    """
    if language == "en":
        return f"{concept.en} in {style.en} style"
    if language == "zh":
        return f"{style.zh}风格的{concept.zh}"
    raise InputError(f"language {language!r}: expected one of {', '.join(LANGUAGES)}")


@functools.cache
def _by_caption() -> dict[str, tuple[Concept, Style]]:
    return {
        caption(concept, style, language): (concept, style)
        for concept in concepts()
        for style in STYLES
        for language in LANGUAGES
    }


def parse_caption(text: str) -> tuple[Concept, Style]:
    """Reads a caption in either language: the reverse of `caption`.

    Raises:
        InputError: it is the caption of no image.
    """
    found = _by_caption().get(text.strip())
    if found is None:
        styles = ", ".join(style.en for style in STYLES)
        raise InputError(
            f"caption {text!r}: expected 'NAME in STYLE style' or 'STYLE风格的NAME', of one of the"
            f" {len(concepts())} concepts and a style ({styles})"
        )
    return found


def require_webp() -> None:
    """Checks that the images can be decoded here.

    Raises:
        InputError: Pillow was built without WebP.
    """
    if not features.check("webp"):
        raise InputError(
            "the embedded emoji are WebP images, which this installation of Pillow cannot read:"
            " install one that can, as `pip install --force-reinstall pillow` does"
        )


def sheet(style: Style) -> UInt8[np.ndarray, "h w 3"]:
    """The sheet of a style, which is decoded when it is first asked for and kept as it is.

    Returns:
        uint8 [h, w, 3], read-only: tile i is in row i // COLUMNS, column i % COLUMNS.

    Raises:
        InputError: the file is damaged, or Pillow cannot read it.
        SystemFault: the machine cannot read it.
    """
    with _LOCK:  # Of several threads that ask first one decodes, and the others wait.
        return _decoded(style.name)


@functools.cache
def _decoded(name: str) -> np.ndarray:
    require_webp()
    path, rows = FOLDER / f"{name}.webp", -(-len(concepts()) // COLUMNS)
    try:
        pixels = decode_image(read_image_file(path), str(path))
    except (BadRecord, FileNotFoundError) as error:
        raise InputError(f"{error}: install the package again") from error
    if pixels.shape != (rows * TILE, COLUMNS * TILE, 3):
        raise InputError(f"{path}: not the sheet of this package: install it again")
    pixels.flags.writeable = False
    return pixels


def tile(concept: int, style: int, size: int = TILE) -> UInt8[np.ndarray, "n n 3"]:
    """The image of a pair of numbers; raises as `sheet` does.

    Returns:
        uint8 [size, size, 3], a copy. If it is not of TILE, its pixels are averages.
    """
    row, column = divmod(concept, COLUMNS)
    whole = sheet(STYLES[style])
    return resized(whole[row * TILE :, column * TILE :][:TILE, :TILE], size)


def resized(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "n n 3"]:
    """A copy of a tile with `size` rows and columns, its pixels averages if it is not of TILE."""
    if size == TILE:
        return image.copy()
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
