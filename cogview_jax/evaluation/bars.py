"""Bars with their intervals, in groups, as a drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from cogview_jax.evaluation.contact_sheet import font_of
from cogview_jax.evaluation.page import COLOURS

_HEIGHT, _LEFT, _TOP, _BOTTOM, _EDGE = 260, 48, 40, 28, 16
_BAR, _GAP, _LETTERS, _LEGEND = 26, 24, 13, 18
#: Drawn larger and reduced, so that letters and lines are smooth.
_SCALE = 2


@dataclass(frozen=True)
class Bar:
    """A value, and the ends of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def bars(
    groups: Mapping[str, Mapping[str, Bar]], ends: tuple[float, float], ticks: Sequence[float]
) -> Image.Image:
    """Groups of bars side by side, a colour for each name within them.

    Args:
        groups: by title, bars by name; every group has the same names.
        ends: of the axis.
        ticks: values of the axis that have a line.

    Returns:
        An RGB image, with the names and colours in its first lines.
    """
    names = list(next(iter(groups.values())))
    group = len(names) * _BAR + _GAP
    top = _TOP + _LEGEND * len(names)
    width, height = max(_LEFT + len(groups) * group + _EDGE, 320), top + _HEIGHT + _BOTTOM
    image = Image.new("RGB", (width * _SCALE, height * _SCALE), "white")
    draw, font = ImageDraw.Draw(image), font_of(_LETTERS * _SCALE)

    def text(x: float, y: float, words: str, anchor: str) -> None:
        draw.text((x * _SCALE, y * _SCALE), words, "#222222", font, anchor)

    def box(x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        draw.rectangle([each * _SCALE for each in (x0, y0, x1, y1)], colour)

    def down(value: float) -> float:
        return top + (ends[1] - value) / (ends[1] - ends[0]) * _HEIGHT

    for i, name in enumerate(names):
        box(_LEFT, 8 + i * _LEGEND, _LEFT + 12, 20 + i * _LEGEND, COLOURS[i % len(COLOURS)])
        text(_LEFT + 18, 14 + i * _LEGEND, name, "lm")
    for tick in ticks:
        box(_LEFT, down(tick), width - _EDGE, down(tick), "#dddddd")
        text(_LEFT - 6, down(tick), f"{tick:g}", "rm")
    for j, (title, found) in enumerate(groups.items()):
        left = _LEFT + _GAP / 2 + j * group
        text(left + len(names) * _BAR / 2, top + _HEIGHT + 6, title, "ma")
        for i, name in enumerate(names):
            bar, at = found[name], left + i * _BAR
            colour = COLOURS[i % len(COLOURS)]
            box(at + 2, down(bar.value), at + _BAR - 2, down(ends[0]), colour)
            if bar.low is not None and bar.high is not None:
                middle = at + _BAR / 2
                box(middle - 0.5, down(bar.high), middle + 0.5, down(bar.low), "#222222")
                for end in (bar.low, bar.high):
                    box(middle - 4, down(end) - 0.5, middle + 4, down(end) + 0.5, "#222222")
    return image.reduce(_SCALE)
