"""A report as a page for people: tables, curves and the images behind the numbers.

One HTML file that needs no other and no network: images and curves are in it as PNG.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cogview_jax.evaluation.contact_sheet import font_of, titled

#: Pixels of a curve's drawing, and of the space around it for its labels; it is drawn larger by
#: _SCALE, so that it is sharp.
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _EDGE = 560, 320, 64, 32, 44, 16
_SCALE = 2
#: Pixels from one name of a line to the next.
_LINE = 16
#: Colours of the lines, that people with any sight tell apart (Okabe and Ito 2008).
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#f0e442", "#000000"),
)
#: Pixels of a side up to which an image is shown larger.
_SHOWN = 160

_STYLE = """
body { font-family: sans-serif; margin: 2em auto; max-width: 70em; color: #222; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { border: 1px solid #ccc; padding: .3em .7em; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere }
th { white-space: nowrap }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .7em }
table.rows td.number { text-align: right; font-variant-numeric: tabular-nums }
figure { display: inline-block; margin: .5em; width: 165px; vertical-align: top }
figcaption { font-size: .8em; overflow-wrap: anywhere }
img { image-rendering: pixelated; border: 1px solid #ddd; width: 160px }
img.curves { image-rendering: auto; border: 0; width: 560px }
img.figure { image-rendering: auto; border: 0; width: auto; max-width: 100% }
"""


@dataclass(frozen=True)
class Images:
    """Images with captions under a title; images are uint8 [h, w, 3]."""

    title: str
    images: Sequence[np.ndarray]
    captions: Sequence[str]


@dataclass(frozen=True)
class Curves:
    """Lines over one axis.

    Attributes:
        title: of the drawing.
        x: values of the axis, ascending.
        x_name: what they are.
        lines: a name and a value for each of x.
        errors: of some lines, how far each value is uncertain on either side.
    """

    title: str
    x: Sequence[float]
    x_name: str
    lines: Mapping[str, Sequence[float]]
    errors: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows of cells under a title; a cell is a text, a number, or None for nothing.

    Where no column has a name, there is no row of names.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]


@dataclass(frozen=True)
class Figure:
    """A drawing under a title; a page shows it at its size, or as wide as the page."""

    title: str
    image: Image.Image


@dataclass(frozen=True)
class Listing:
    """Lines under a title that are shown as they are, to be copied."""

    title: str
    text: str


Section = Images | Curves | Table | Figure | Listing


def report_page(title: str, report: Mapping[str, Any], sections: Iterable[Section] = ()) -> str:
    """A page of a report, its sections first and every number of it below."""
    parts = [f"<h1>{html.escape(title)}</h1>", *map(_section, sections)]
    rows = "".join(_row(key, value) for key, value in report.items())
    parts.append(f"<h2>Everything that was measured</h2><table>{rows}</table>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _section(section: Section) -> str:
    if isinstance(section, Images):
        shown = _images(section)
    elif isinstance(section, Curves):
        shown = f'<img class="curves" alt="" src="{_png(_drawing(section))}">'
    elif isinstance(section, Figure):
        shown = f'<img class="figure" alt="" src="{_png(section.image)}">'
    elif isinstance(section, Listing):
        shown = f"<pre>{html.escape(section.text)}</pre>"
    else:
        shown = _table(section)
    return f"<h2>{html.escape(section.title)}</h2>{shown}"


def _images(section: Images) -> str:
    return "".join(
        f'<figure><img alt="" src="{_png(_small(image))}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for image, caption in zip(section.images, section.captions, strict=True)
    )


def _small(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    if max(image.size) > 2 * _SHOWN:
        image.thumbnail((2 * _SHOWN, 2 * _SHOWN))
    return image


def _png(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def _table(section: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in section.columns)
    head = f"<tr>{head}</tr>" if any(section.columns) else ""
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in section.rows)
    return f'<table class="rows">{head}{rows}</table>'


def _row(key: str, value: Any) -> str:
    return f"<tr><th>{html.escape(key.replace('_', ' '))}</th>{_cell(value)}</tr>"


def _cell(value: Any) -> str:
    """A cell of a table; mappings are tables within it, a list of texts has a line each."""
    if isinstance(value, Mapping):
        return f"<td><table>{''.join(_row(str(k), v) for k, v in value.items())}</table></td>"
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        rows = Table("", list(value[0]), [list(item.values()) for item in value])
        return f"<td>{_table(rows)}</td>"
    if isinstance(value, (list, tuple)):
        return f"<td>{'<br>'.join(html.escape(str(item)) for item in value)}</td>"
    if isinstance(value, bool) or value is None:
        return f"<td>{'' if value is None else str(value).lower()}</td>"
    if isinstance(value, (int, float)):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
        return f'<td class="number">{text}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def figures_image(sections: Iterable[Section]) -> Image.Image | None:
    """The curves and figures among sections below each other, with their titles; None of none."""
    shown = [section for section in sections if isinstance(section, (Curves, Figure))]
    # Curves are drawn larger, but not beside figures, whose letters are small.
    reduced = _SCALE if any(isinstance(section, Figure) for section in shown) else 1
    drawings = [
        _drawing(section).reduce(reduced)
        if isinstance(section, Curves)
        else titled({section.title: section.image})
        for section in shown
    ]
    if not drawings:
        return None
    size = (max(each.width for each in drawings), sum(each.height for each in drawings))
    sheet, top = Image.new("RGB", size, "white"), 0
    for drawing in drawings:
        sheet.paste(drawing, (0, top))
        top += drawing.height
    return sheet


def _drawing(curves: Curves) -> Image.Image:
    """Lines under their title; axes end at the extreme values."""
    image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
    draw, font = ImageDraw.Draw(image), font_of(13 * _SCALE)
    errors = {name: curves.errors.get(name, [0] * len(curves.x)) for name in curves.lines}
    ends = [
        (value - error, value + error)
        for name, line in curves.lines.items()
        for value, error in zip(line, errors[name], strict=True)
    ]
    low, high = min(end for end, _ in ends), max(end for _, end in ends)
    if low == high:
        low, high = low - 0.5, high + 0.5
    top = _TOP + _LINE * (len(curves.lines) - 1)
    first, span = curves.x[0], (curves.x[-1] - curves.x[0]) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - first) / span * (_WIDTH - _LEFT - _EDGE)
        down = top + (high - y) / (high - low) * (_HEIGHT - top - _BOTTOM)
        return across * _SCALE, down * _SCALE

    def text(x: float, y: float, words: str, anchor: str, colour: str = "#444444") -> None:
        draw.text((x, y), words, colour, font, anchor)

    left, right, bottom = _LEFT * _SCALE, (_WIDTH - _EDGE) * _SCALE, (_HEIGHT - _BOTTOM) * _SCALE
    text(left, 6 * _SCALE, curves.title, "la", "#000000")
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = low + share * (high - low)
        down = at(first, value)[1]
        draw.line((left, down, right, down), "#dddddd", _SCALE)
        text(left - 6 * _SCALE, down, f"{value:.4g}", "rm")
    for x in _ticks(curves.x):
        text(at(x, low)[0], bottom + 4 * _SCALE, f"{x:g}", "ma")
    text((left + right) / 2, bottom + 20 * _SCALE, curves.x_name, "ma")
    for number, (name, line) in enumerate(curves.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [at(x, y) for x, y in zip(curves.x, line, strict=True)]
        draw.line(points, colour, 2 * _SCALE, "curve")
        for x, y in points:
            draw.circle((x, y), 3 * _SCALE, colour)
        for x, y, error in zip(curves.x, line, errors[name], strict=True):
            if error:
                draw.line((*at(x, y - error), *at(x, y + error)), colour, _SCALE)
        text(right, (6 + _LINE * number) * _SCALE, name, "ra", colour)
    return image


def _ticks(x: Sequence[float], most: int = 8) -> Sequence[float]:
    """At most so many of the values, the first and the last among them."""
    if len(x) <= most:
        return x
    return [x[round(i * (len(x) - 1) / (most - 1))] for i in range(most)]
