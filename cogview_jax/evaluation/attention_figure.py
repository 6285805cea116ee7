"""Drawings of what the heads of a transformer attend to, for people."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from cogview_jax.evaluation.attention_shares import (
    KEYS,
    KINDS,
    MARGIN,
    MIXED,
    OFFSETS,
    AttentionMeans,
    HeadShares,
)
from cogview_jax.evaluation.contact_sheet import caption_grid, font_of

#: The colour of each of KINDS, which people with any sight tell apart (Okabe and Ito 2008), and
#: that of heads of no kind.
COLOURS = {"position": "#0072b2", "text": "#d55e00", "few tokens": "#009e73", MIXED: "#999999"}
#: What the legend says of each kind.
_LEGEND = {
    "position": f"position: on the best {OFFSETS} offsets",
    "text": "text: on the caption",
    "few tokens": f"few tokens: on the best {KEYS} tokens outside the caption",
    MIXED: f"mixed: no share exceeds equal attention by {MARGIN:g}",
}
#: Pixels of all maps of a layer, about, and the least and the most of one.
_MAPS, _LEAST_MAP, _MOST_MAP = 900, 63, 225
#: Pixels of a map's frame, a bar, the space between heads, a letter, the space for the names of
#: layers, and for the legend and the numbers of heads.
_FRAME, _BAR, _GAP, _TEXT, _LEFT, _TOP = 2, 4, 8, 13, 64, 68
#: No attention and the most of it; offsets that no query sees; what a bar is drawn on.
_LEAST, _MOST, _UNSEEN, _EMPTY = (255, 255, 255), (8, 29, 88), (226, 226, 226), "#e8e8e8"
#: Images in a row of a sheet of words, and the pixels of one.
_COLUMNS, _CELL = 10, 96
#: The colour that marks attention on an image.
_MARK = (213, 94, 0)


def heads_figure(
    means: AttentionMeans, shares: HeadShares, equal: Float[np.ndarray, " 3"]
) -> Image.Image:
    """A row of panels for each layer, one panel a head.

    A panel is the mean attention by offset, the query in the middle of the lowest row, in the
    colours from white to dark blue, by the square root of the weight. Its frame has the colour of
    the head's kind. The bars below it are its shares in the order of KINDS, and a line in each of
    them is that of equal attention; the whole width is a share of 1.

    Args:
        means: [layers, heads].
        shares: [layers, heads].
        equal: the shares of a head that attends to all tokens alike.
    """
    layers, heads, rows, columns = means.offsets.shape
    scale = max(1, min(max(_MAPS // heads, _LEAST_MAP), _MOST_MAP) // columns)
    width, height = columns * scale + 2 * _FRAME, rows * scale + 2 * _FRAME
    across, down = width + _GAP, height + len(KINDS) * (_BAR + 1) + _GAP
    font, kinds = font_of(_TEXT), shares.kinds(equal)
    legend = _legend()
    size = (_LEFT + max(heads * across + _GAP, legend.width), _TOP + layers * down + _GAP)
    sheet = Image.new("RGB", size, "white")
    sheet.paste(legend, (_LEFT, 0))
    draw = ImageDraw.Draw(sheet)
    words = "Bars: the shares; the line in each is that of equal attention. Heads:"
    draw.text((_LEFT, _TOP - 38), words, "#444444", font)
    for head in range(heads):
        draw.text((_LEFT + head * across, _TOP - 18), str(head), "#444444", font)
    for layer in range(layers):
        top = _TOP + layer * down
        draw.text((_GAP, top + height / 2), f"layer {layer}", "#444444", font, "lm")
        for head in range(heads):
            left = _LEFT + head * across
            frame = (left, top, left + width - 1, top + height - 1)
            draw.rectangle(frame, COLOURS[kinds[layer][head]])
            panel = offset_map(means.offsets[layer, head]).repeat(scale, 0).repeat(scale, 1)
            sheet.paste(Image.fromarray(panel), (left + _FRAME, top + _FRAME))
            for number, kind in enumerate(KINDS):
                y = top + height + 1 + number * (_BAR + 1)
                draw.rectangle((left, y, left + width - 1, y + _BAR - 1), _EMPTY)
                length = round(width * float(shares.shares[layer, head, number]))
                if length:
                    draw.rectangle((left, y, left + length - 1, y + _BAR - 1), COLOURS[kind])
                alike = left + round(width * float(equal[number]))
                draw.line((alike, y, alike, y + _BAR - 1), "#000000")
    return sheet


def _legend() -> Image.Image:
    """The colours of the kinds in one line."""
    font = font_of(_TEXT)
    widths = [2 * _TEXT + 16 + round(font.getlength(text)) for text in _LEGEND.values()]
    line, left = Image.new("RGB", (sum(widths), 2 * _GAP + _TEXT), "white"), 0
    draw = ImageDraw.Draw(line)
    for (kind, text), width in zip(_LEGEND.items(), widths, strict=True):
        draw.rectangle((left, _GAP, left + _TEXT, _GAP + _TEXT), COLOURS[kind])
        draw.text((left + _TEXT + 6, _GAP), text, "#444444", font)
        left += width
    return line


def offset_map(offsets: Float[np.ndarray, "G 2*G-1"]) -> UInt8[np.ndarray, "G 2*G-1 3"]:
    """The mean attention by offset as colours; what comes after the query is grey."""
    strength = np.sqrt(offsets / max(float(offsets.max()), np.finfo(float).tiny))[..., None]
    pixels = np.asarray(_LEAST) * (1 - strength) + np.asarray(_MOST) * strength
    pixels[-1, offsets.shape[1] // 2 + 1 :] = _UNSEEN
    return np.round(pixels).astype(np.uint8)


def text_figure(
    image: UInt8[np.ndarray, "h w 3"], weights: Float[np.ndarray, "W Q"], words: Sequence[str]
) -> Image.Image:
    """An image, and where on it a head attends to each word of its caption.

    Args:
        image: the image.
        weights: of each word, for each code of the image.
        words: the words.
    """
    largest = max(float(weights.max()), np.finfo(float).tiny)
    grid = round(weights.shape[1] ** 0.5)
    marked = [_marked(image, each.reshape(grid, grid) / largest) for each in weights]
    shares = weights.mean(axis=1)
    captions = [f"{word} {share:.3f}" for word, share in zip(words, shares, strict=True)]
    sheet = [image, *marked]
    return caption_grid(sheet, ["the image", *captions], min(len(sheet), _COLUMNS), _CELL)


def _marked(
    image: UInt8[np.ndarray, "h w 3"], strength: Float[np.ndarray, "G G"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in pale grey, marked where `strength` is near 1."""
    cells = [size // len(strength) for size in image.shape[:2]]
    share = strength.repeat(cells[0], 0).repeat(cells[1], 1)[..., None]
    pale = 255 - (255 - image.mean(axis=2, keepdims=True)) / 2
    return np.round(pale * (1 - share) + np.asarray(_MARK) * share).astype(np.uint8)
