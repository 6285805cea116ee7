"""The drawings of attention show what they are of, where it belongs."""

import numpy as np
from PIL import ImageColor

from cogview_jax.evaluation.attention_figure import (
    COLOURS,
    heads_figure,
    offset_map,
    text_figure,
)
from cogview_jax.evaluation.attention_shares import KINDS, AttentionMeans, head_shares

GRID = 4


def means_of(text, few, position):
    """Means of heads [layers, heads]: shares of text, of one command, and of the code above."""
    shape = np.shape(text)
    keys = np.zeros((*shape, 3 + GRID**2))
    keys[..., 2], keys[..., 3:] = few, np.asarray(position)[..., None] / GRID**2
    offsets = np.zeros((*shape, GRID, 2 * GRID - 1))
    offsets[..., -2, GRID - 1] = position
    return AttentionMeans(np.asarray(text), keys, offsets)


def test_a_map_has_the_query_in_the_middle_of_its_lowest_row():
    offsets = np.zeros((GRID, 2 * GRID - 1))
    offsets[-1, GRID - 1], offsets[-2, 0] = 1.0, 0.25
    pixels = offset_map(offsets).astype(int)
    darkness = 255 - pixels.mean(axis=-1)
    assert np.unravel_index(darkness.argmax(), darkness.shape) == (GRID - 1, GRID - 1)
    # The square root of a quarter is a half.
    assert abs(darkness[-2, 0] - darkness.max() / 2) < 1
    unseen = pixels[-1, GRID:]
    assert (unseen == unseen[0, 0]).all()
    assert 200 < unseen[0, 0] < 255
    assert (np.delete(pixels[:-1].reshape(-1, 3), (GRID - 2) * (2 * GRID - 1), 0) == 255).all()


def of_colour(sheet, kind):
    """Where the sheet, below its legend, has the colour of a kind: bool [rows, columns]."""
    found = (np.asarray(sheet) == ImageColor.getrgb(COLOURS[kind])).all(axis=-1)
    found[:60] = False
    return found


def frame_of(sheet, kind):
    """The top, bottom and left of the frame in the colour of a kind: its tallest line."""
    found = of_colour(sheet, kind)
    left = found.sum(axis=0).argmax()
    rows = np.flatnonzero(found[:, left])
    longest = max(np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1), key=len)
    return longest[0], longest[-1], left


def test_frames_and_bars_are_those_of_the_kinds():
    """Two layers of two heads: text and few tokens, position and mixed."""
    text, few = [[0.9, 0.1], [0.0, 0.1]], [[0.0, 0.9], [0.0, 0.1]]
    means, equal = means_of(text, few, [[0.1, 0.0], [1.0, 0.1]]), np.array([0.25, 0.1, 0.1])
    shares = head_shares(means)
    assert shares.kinds(equal) == [["text", "few tokens"], ["position", "mixed"]]
    sheet = heads_figure(means, shares, equal)
    frames = {kind: frame_of(sheet, kind) for kind in COLOURS}
    tops = {kind: int(top) for kind, (top, _, _) in frames.items()}
    assert tops["text"] == tops["few tokens"] < tops["position"] == tops["mixed"]
    lefts = {kind: int(left) for kind, (_, _, left) in frames.items()}
    assert lefts["text"] == lefts["position"] < lefts["few tokens"] == lefts["mixed"]
    width = of_colour(sheet, "text")[tops["text"]].sum()
    for at, frame in (((0, 0), "text"), ((0, 1), "few tokens"), ((1, 0), "position")):
        _, bottom, left = frames[frame]
        below = (slice(bottom + 1, bottom + 16), slice(left, left + width))
        for number, kind in enumerate(KINDS):
            bar = of_colour(sheet, kind)[below].sum(axis=1).max()
            # The line of equal attention lies on it.
            assert abs(bar / width - shares.shares[at][number]) < 2 / width, (at, kind)
        black = np.flatnonzero((np.asarray(sheet)[below] == 0).all(axis=-1).any(axis=0))
        np.testing.assert_allclose(black / width, [0.1, 0.25], atol=1 / width)


def test_an_image_is_marked_where_a_word_is_read():
    image = np.zeros((8, 8, 3), np.uint8)
    weights = np.zeros((2, 4))
    weights[0, 1], weights[1, 2] = 0.5, 0.25
    sheet = np.asarray(text_figure(image, weights, ["red", "circle"])).astype(int)
    # Images of 8 pixels are shown 12 times larger, with 12 pixels between them.
    first, second, third = (sheet[12 : 12 + 96, x : x + 96] for x in (12, 120, 228))
    assert (first == 0).all()
    mark = [213, 94, 0]
    assert (second[:48, 48:] == mark).all()
    plain = second[0, 0]
    assert (second[48:] == plain).all()
    # Half as strong as the strongest word of all.
    np.testing.assert_allclose(third[60, 10], (plain + mark) / 2, atol=1)
    assert (third[:48] == plain).all()
