"""The page of a report: whole in itself, with every number, and curves where they belong."""

import base64
import html.parser
import io
import re

import numpy as np
from PIL import Image

from cogview_jax.evaluation.page import (
    Curves,
    Figure,
    Images,
    Listing,
    Table,
    figures_image,
    report_page,
)

REPORT = {"fid": {"0": 12.5, "8": 3.0}, "features": {"name": "<b>"}, "notes": ["a", "b"], "n": 1234}


class Reader(html.parser.HTMLParser):
    """Collects texts, sources, and checks that elements close in order."""

    def __init__(self):
        super().__init__()
        self.texts, self.sources, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_holds_everything_and_asks_for_nothing():
    image = np.zeros((8, 8, 3), np.uint8)
    sections = [
        Images("Best", [image], ["a <circle> & more"]),
        Table("Rows", ("", "FID"), [["this", 1.5], ["paper", None]]),
        Curves("FID", (1, 2, 5), "n", {"by clip": (3.0, 2.0, 1.0)}),
        Figure("Heads", Image.new("RGB", (5, 4), "red")),
    ]
    page = report_page("fid: report.json", REPORT, sections)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    for text in ("12.5", "1,234", "<b>", "a <circle> & more", "paper", "b", "Heads"):
        assert text in reader.texts, text
    assert len(reader.sources) == 3
    shown = [source.removeprefix("data:image/png;base64,") for source in reader.sources]
    first, _, last = (Image.open(io.BytesIO(base64.b64decode(each))) for each in shown)
    np.testing.assert_array_equal(np.asarray(first), image)
    assert last.size == (5, 4)
    np.testing.assert_array_equal(np.asarray(last), np.full((4, 5, 3), (255, 0, 0)))
    assert not re.search(r"https?:", page)


def test_lines_to_be_copied_and_tables_without_names_are_shown_as_they_are():
    flags = "# at most 5 < 9\n--config.a=1 --config.b=2"
    sections = [Listing("Flags", flags), Table("Bare", ("", ""), [["one", "two"]])]
    page = report_page("survey", {}, sections)
    reader = Reader()
    reader.feed(page)
    assert flags in reader.texts
    assert "<th>" not in page.split("Bare")[1].split("Everything")[0]


def test_a_line_is_drawn_where_its_values_are():
    """In the colour of the first line; a higher value is higher up, a later one further right."""
    drawing = np.asarray(figures_image([Curves("t", (0, 10), "n", {"a": (1.0, 5.0)})]))
    blue = np.argwhere((drawing == (0, 0x72, 0xB2)).all(axis=-1))
    blue = blue[blue[:, 0] > 55]  # below the name of the line
    left, right = blue[blue[:, 1].argmin()], blue[blue[:, 1].argmax()]
    assert left[0] > right[0] + 300
    half = blue[np.abs(blue[:, 1] - (left[1] + right[1]) // 2) < 2, 0].mean()
    assert abs(half - (left[0] + right[0]) / 2) < 12
    curves = Curves("t", (0, 1), "n", {"a": (2.0, 2.0)})
    assert figures_image([curves] * 2).height == 2 * drawing.shape[0]


def test_a_figure_is_below_its_title_and_beside_it_curves_are_small():
    image = Image.new("RGB", (70, 9), "red")
    sections = [Figure("t", image), Images("i", [], []), Curves("t", (0, 1), "n", {"a": (1, 2)})]
    alone = np.asarray(figures_image(sections[:1]))
    np.testing.assert_array_equal(alone[-9:, :70], np.asarray(image))
    assert (alone[:-9] != 255).any()
    curves = figures_image(sections[2:])
    assert figures_image(sections).height == len(alone) + curves.height // 2
    assert figures_image(sections[1:2]) is None
