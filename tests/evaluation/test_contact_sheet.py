"""The sheet shows every pixel at its value and every caption in the font that ships with us."""

import re

import numpy as np
import pytest
from PIL import ImageFont

from cogview_jax.evaluation.contact_sheet import _FONT, _font, _wrap, caption_grid, titled

WHITE = 255


def images(*sizes):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 200, (h, w, 3), dtype=np.uint8) for h, w in sizes]


def test_small_images_become_blocks_of_their_own_values():
    (small,) = images((16, 16))
    sheet = np.asarray(caption_grid([small], ["x"], cell=70))  # 4 fits, 5 does not
    rows, columns = 12 + np.arange(64), 12 + np.arange(64)
    shown = sheet[np.ix_(rows, columns)]
    np.testing.assert_array_equal(shown, np.kron(small, np.ones((4, 4, 1), np.uint8)))


def test_large_images_are_not_shrunk_and_order_is_reading_order():
    group = images((200, 150), (8, 8), (100, 180))
    sheet = np.asarray(caption_grid(group, ["", "", ""], columns=2, cell=64))
    assert sheet.shape[1] == 12 + 2 * (180 + 12)
    np.testing.assert_array_equal(sheet[12:212, 12:162], group[0])
    np.testing.assert_array_equal(sheet[12, 12 + 180 + 12], group[1][0, 0])
    below = np.argwhere((sheet == group[2][0, 0]).all(-1)).tolist()
    assert any(y > 212 and x == 12 for y, x in below)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 2), (5, 3), (9, 3)])
def test_sheet_is_as_square_as_it_can_be(count, columns):
    sheet = caption_grid(images(*[(64, 64)] * count), [""] * count, cell=64)
    assert sheet.width == 12 + columns * (64 + 12)


def test_captions_are_drawn_below_and_wrapped_inside_their_cell():
    short, long = (
        np.asarray(caption_grid(images((64, 64)), [text], cell=64))
        for text in ("a", "a small red circle on a white background 白色背景的一个红色圆形")
    )
    assert long.shape[0] > short.shape[0]
    ink = np.argwhere(long[12 + 64 + 2 :] < 150)
    assert len(ink) > 100
    assert ink[:, 1].min() >= 12
    assert ink[:, 1].max() <= 12 + 64


def test_long_captions_are_cut_to_some_lines():
    heights = [
        caption_grid(images((64, 64)), [text], cell=64).height
        for text in ("apple " * 12, "apple " * 13, "apple " * 600)
    ]
    assert len(_wrap("apple " * 12, 64)) == 12
    assert heights == [heights[0]] * 3


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three four", ["one two", "three", "four"]),
        ("一二三四五六七", ["一二三四", "五六七"]),
        ("一二三四，五六七", ["一二三", "四，五六", "七"]),  # no line starts with a comma
        ("incomprehensible", ["incompre", "hensible"]),
        ("a\nb", ["a b"]),
        ("", []),
    ],
)
def test_wrapping(text, lines):
    assert _wrap(text, 56) == lines


def test_nothing_of_a_caption_is_lost():
    text = "the 红色圆形，a very-long-hyphenated-word！ and 3个 stars"
    wrapped = "".join(_wrap(text, 40))
    assert re.sub(r"\s", "", wrapped) == re.sub(r"\s", "", text)


def test_font_has_the_captions_of_the_shapes():
    """A character that the font lacks is drawn as the same box as any other that it lacks."""
    missing = bytes(_font().getmask("\U0010fffe"))
    text = (
        "红绿蓝黄紫橙粉黑白灰色圆形正方三角星菱环十字心底背景中间左上右下的一个小大两四在边面，、。"
    )
    text += "".join(map(chr, range(33, 127)))
    font = ImageFont.truetype(str(_FONT), 13)
    assert [character for character in text if bytes(font.getmask(character)) == missing] == []


def test_one_caption_an_image():
    with pytest.raises(ValueError, match="zip"):
        caption_grid(images((8, 8)), ["a", "b"])


def test_titled_sheets_stand_whole_below_their_titles():
    first, second = (caption_grid(images((64, 64 * n)), ["x"], cell=64) for n in (1, 3))
    whole = np.asarray(titled({"one": first, "the second 第二": second}))
    assert whole.shape[1] == second.width
    # A line of title with a margin over it, then the sheet as it is.
    for top, sheet in ((12 + 17, first), (2 * (12 + 17) + first.height, second)):
        shown = whole[top : top + sheet.height, : sheet.width]
        np.testing.assert_array_equal(shown, np.asarray(sheet))
        assert (whole[top - 17 : top] < 150).any()
        assert (whole[top - 17 - 12 : top - 17] == 255).all()
    assert whole.shape[0] == 2 * (12 + 17) + first.height + second.height
