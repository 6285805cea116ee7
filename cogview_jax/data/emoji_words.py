"""The embedded images in other words than their captions: with an article, a colour, no style.

A model that has read nothing but "butterfly in flat style" is led astray by "a blue butterfly".
Here an image is also called "a butterfly", and by its colour where it has one: "a purple butterfly
in flat style". Most things have a colour of their own, from which a word for it cannot be told; so
there are images that were turned to another one, whose captions always name it.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from cogview_jax.data.emoji_set import STYLES, Concept, Style, caption, tile


@dataclass(frozen=True)
class Colour:
    """A colour that captions name.

    Attributes:
        en: its name in English.
        zh: its name in Chinese.
        hue: its middle in degrees, red at 0 and green at 120; NaN where it is no hue.
    """

    en: str
    zh: str
    hue: float = math.nan


RED, ORANGE, YELLOW, GREEN, BLUE, PURPLE, PINK = HUES = (
    Colour("red", "红色", 0.0),
    Colour("orange", "橙色", 28.0),
    Colour("yellow", "黄色", 52.0),
    Colour("green", "绿色", 120.0),
    Colour("blue", "蓝色", 215.0),
    Colour("purple", "紫色", 272.0),
    Colour("pink", "粉色", 322.0),
)
BROWN, BLACK, GREY = Colour("brown", "棕色"), Colour("black", "黑色"), Colour("grey", "灰色")
COLOURS = (*HUES, BROWN, BLACK, GREY)
#: Where the hues begin, in degrees and in the order of HUES, after the upper end of red.
_BOUNDS = (15.0, 42.0, 68.0, 165.0, 255.0, 290.0, 342.0)
#: The share of an image without its background that has to be of one colour.
_MAJORITY = 0.5
#: So many images in other colours are made of one.
_TURNED = 3
#: Everything is black in it, which tells nothing.
_COLOURLESS = "high_contrast"


def colour_of(image: UInt8[np.ndarray, "h w 3"], style: Style) -> Colour | None:
    """The colour of most of an image on white, or None where it has no such colour."""
    if style.name == _COLOURLESS:
        return None
    pixels = image.reshape(-1, 3).astype(np.float32) / 255
    pixels = pixels[pixels.min(1) < 0.92]
    if not len(pixels):
        return None
    hue, chroma, value = _hue_chroma_value(pixels)
    saturation = chroma / np.maximum(value, 1e-6)
    numbers = np.searchsorted(_BOUNDS, hue, side="right") % len(HUES)
    is_red = numbers == COLOURS.index(RED)
    is_warm = is_red | (numbers == COLOURS.index(ORANGE))
    # The later ones go before the earlier ones.
    numbers[is_red & (saturation < 0.5) & (value > 0.75)] = COLOURS.index(PINK)
    numbers[is_warm & (value < 0.68)] = COLOURS.index(BROWN)
    numbers[saturation < 0.18] = COLOURS.index(GREY)
    numbers[value < 0.3] = COLOURS.index(BLACK)
    counts = np.bincount(numbers)
    enough = counts.max() >= _MAJORITY * len(pixels)
    return COLOURS[counts.argmax()] if enough else None


def turned(
    image: UInt8[np.ndarray, "h w 3"], old: Colour, new: Colour
) -> UInt8[np.ndarray, "h w 3"]:
    """An image whose hues are turned so that those of `old` are `new`; both are of HUES."""
    hue, chroma, value = _hue_chroma_value(image.astype(np.float32) / 255)
    hue = (hue + new.hue - old.hue) % 360
    # HSV to RGB: each channel falls from `value` by `chroma` with its distance from the hue.
    channels = [
        value - chroma * np.clip(np.minimum(sector, 4 - sector), 0, 1)
        for sector in ((shift + hue / 60) % 6 for shift in (5, 3, 1))
    ]
    return np.rint(255 * np.stack(channels, -1)).astype(np.uint8)


def other_colours(concept: int, style: int) -> list[tuple[Colour, Colour]]:
    """What the image of a pair of numbers is turned from and to: at most three other hues.

    None for an image whose colour is no hue. A hue is left out where the result is judged to be of
    another, as of images with many hues.
    """
    image, own = tile(concept, style), colour_of(tile(concept, style), STYLES[style])
    if own not in HUES:
        return []
    first = (concept + style) % len(HUES)
    return [
        (own, new)
        for new in (*HUES[first:], *HUES[:first])
        if new != own and colour_of(turned(image, own, new), STYLES[style]) == new
    ][:_TURNED]


def _hue_chroma_value(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, chroma and value in [0, 1], of RGB in [0, 1] [..., 3]."""
    value = rgb.max(-1)
    chroma = value - rgb.min(-1)
    r, g, b = np.moveaxis(rgb, -1, 0)
    c = np.maximum(chroma, 1e-6)
    sector = np.where(
        value == r, (g - b) / c % 6, np.where(value == g, (b - r) / c + 2, (r - g) / c + 4)
    )
    return 60 * sector, chroma, value


def wordings(
    concept: Concept, style: Style, language: str, colour: Colour | None, *, own: bool
) -> tuple[str, ...]:
    """What an image is called in a language: with and without its style and its colour.

    Args:
        colour: the colour of the image, if it has one.
        own: whether this is how the thing looks in the style; if it is not, each text names the
            colour. The first text is then not `emoji_set.caption`.
    """
    texts = [caption(concept, style, language)] if own else []
    if language == "zh":
        texts += [concept.zh] if own else []
        if colour:
            texts += [f"{style.zh}风格的{colour.zh}{concept.zh}", f"{colour.zh}{concept.zh}"]
        return tuple(texts)
    things = [_with_article(concept.en, concept.en)] if own else []
    if colour:
        things.append(_with_article(f"{colour.en} {concept.en}", concept.en))
    for thing in things:
        texts += [f"{thing} in {style.en} style", thing]
    return tuple(texts)


def _with_article(text: str, noun: str) -> str:
    """`text` after "a" or "an"; as it is where the noun in it looks like a plural."""
    if noun.endswith("s") and not noun.endswith(("us", "os", "ss")):
        return text
    vowel = text[0].lower() in "aeiou" and not text.startswith("uni")
    return f"{'an' if vowel else 'a'} {text}"
