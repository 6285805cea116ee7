"""Images with their captions on one sheet, for people to look at."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: English and Chinese.
_FONT = Path(__file__).parents[1] / "assets" / "fonts" / "wqy-microhei-subset.ttf"
_TEXT_SIZE, _LINE, _MARGIN, _GAP = 13, 17, 12, 4
#: A prompt may have 4,096 characters, and would push the images apart.
_MOST_LINES = 12
_PAPER, _INK, _FRAME = (255, 255, 255), (50, 50, 50), (215, 215, 215)

# A Chinese character with the closing marks that must not start a line; a word; a space.
_WIDE = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
_UNITS = re.compile(rf"[{_WIDE}][，。、；：？！）》」』”’]*|[^\s{_WIDE}]+|\s+")


def caption_grid(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    columns: int | None = None,
    cell: int = 128,
) -> Image.Image:
    """A sheet of `images` in reading order, each with its caption below, wrapped to its cell.

    Args:
        images: uint8 [h, w, 3], of any sizes. Those smaller than `cell` are shown larger, by the
            largest whole factor that fits, each pixel a block of its own value; none is shrunk.
        captions: one an image, English or Chinese. Of a long one the first lines are shown.
        columns: images a row; as square a sheet as possible where None.
        cell: the width and height in pixels that an image may fill.

    Returns:
        An RGB image.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    scaled = [_scaled(image, cell) for image in images]
    width = max(cell, *(image.width for image in scaled))
    texts = [_shortened(_wrap(caption, width)) for caption in captions]
    items = list(zip(scaled, texts, strict=True))
    rows = [items[i : i + columns] for i in range(0, len(items), columns)]
    heights = [
        max(image.height for image, _ in row) + _GAP + _LINE * max(len(text) for _, text in row)
        for row in rows
    ]
    size = (_MARGIN + columns * (width + _MARGIN), _MARGIN + sum(h + _MARGIN for h in heights))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        below = top + max(image.height for image, _ in row) + _GAP
        for column, (image, text) in enumerate(row):
            left = _MARGIN + column * (width + _MARGIN)
            frame = (left - 1, top - 1, left + image.width, top + image.height)
            draw.rectangle(frame, outline=_FRAME)  # around it: a white image has an edge too
            sheet.paste(image, (left, top))
            for i, line in enumerate(text):
                draw.text((left, below + i * _LINE), line, fill=_INK, font=_font())
        top += height + _MARGIN
    return sheet


def titled(sheets: Mapping[str, Image.Image]) -> Image.Image:
    """Sheets one below the other, each under its title, as one RGB image."""
    width = max(sheet.width for sheet in sheets.values())
    titles = [_wrap(title, width - 2 * _MARGIN) for title in sheets]
    heights = [
        _MARGIN + _LINE * len(title) + sheet.height
        for title, sheet in zip(titles, sheets.values(), strict=True)
    ]
    whole = Image.new("RGB", (width, sum(heights)), _PAPER)
    draw, top = ImageDraw.Draw(whole), 0
    for title, sheet, height in zip(titles, sheets.values(), heights, strict=True):
        for i, line in enumerate(title):
            draw.text((_MARGIN, top + _MARGIN + i * _LINE), line, fill=_INK, font=_font())
        whole.paste(sheet, (0, top + height - sheet.height))
        top += height
    return whole


def _scaled(image: np.ndarray, cell: int) -> Image.Image:
    factor = max(1, cell // max(image.shape[:2]))
    return Image.fromarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def _wrap(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels; a word is split only where it alone is wider."""
    lines = [""]
    for unit in _UNITS.findall(" ".join(text.split())):
        if _font().getlength(lines[-1] + unit.rstrip()) <= width:
            lines[-1] += unit
            continue
        lines.append("")
        for character in unit.lstrip():
            if _font().getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return [line.strip() for line in lines if line.strip()]


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], "..."]


@functools.cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font of all sheets and drawings, with letters of `size` pixels."""
    return ImageFont.truetype(str(_FONT), size)


def _font() -> ImageFont.FreeTypeFont:
    return font_of(_TEXT_SIZE)
