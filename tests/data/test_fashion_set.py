"""What captions of Fashion-MNIST say, and the rules by which they say it."""

import itertools

import numpy as np
import pytest

from cogview_jax.data import fashion_set
from cogview_jax.data.fashion_set import CLASSES, SHAPES, TONES, Shown
from cogview_jax.runtime.errors import InputError


def box(height, width, grey, size=32):
    """A box in the middle of a white square."""
    image = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    image[top : top + height, left : left + width] = grey
    return image


@pytest.mark.parametrize(
    ("grey", "tone"),
    [(0, "dark"), (79, "dark"), (80, "grey"), (114, "grey"), (115, "light"), (231, "light")],
)
def test_the_tone_is_the_mean_grey_of_the_article(grey, tone):
    for height, width in ((3, 5), (30, 20)):
        assert TONES[fashion_set.tone_of(box(height, width, grey))][0] == tone
    # Half of it lighter, half darker, and noise on the white that is no article.
    image = box(10, 10, grey)
    image[11:16, 11:21] -= min(grey, 10)
    image[16:21, 11:21] += min(grey, 10)
    image[:4] = 240
    assert TONES[fashion_set.tone_of(image)][0] == tone


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    [(20, 11, "narrow"), (20, 12, ""), (20, 29, ""), (20, 30, "wide"), (6, 24, "wide")],
)
def test_the_shape_is_that_of_the_box_around_the_article(height, width, shape):
    image = box(height, width, 100)
    assert SHAPES[fashion_set.shape_of(image)][0] == shape
    twice = image.repeat(2, axis=0).repeat(2, axis=1)
    assert SHAPES[fashion_set.shape_of(twice)][0] == shape
    # Only the box counts, not what is in it.
    top, left = (32 - height) // 2, (32 - width) // 2
    image[top + 1 : top + height - 1, left + 1 : left + width - 1] = 255
    assert SHAPES[fashion_set.shape_of(image)][0] == shape


def test_a_white_picture_shows_no_article():
    white = box(0, 0, 0)
    assert (fashion_set.tone_of(white), fashion_set.shape_of(white)) == (-1, -1)


def test_captions_are_read_back():
    every = [Shown(*each) for each in itertools.product(*map(range, (10, 3, 3)))]
    captions = set()
    for shown, language in itertools.product(every, ("en", "zh")):
        text = fashion_set.caption(shown, language)
        assert fashion_set.parse_caption(f" {text}\n") == (shown, language)
        captions.add(text)
    assert len(captions) == 2 * len(every)
    assert len(CLASSES) == 10
    assert fashion_set.caption(Shown(3, 0, 0), "en") == "dark narrow dress"
    assert fashion_set.caption(Shown(9, 1, 1), "en") == "grey ankle boot"
    assert fashion_set.caption(Shown(8, 2, 2), "zh") == "浅色宽款包"


@pytest.mark.parametrize("text", ["dress", "narrow dark dress", "a dark dress", ""])
def test_other_texts_are_no_captions(text):
    with pytest.raises(InputError, match=r"such as 'dark narrow dress' or '浅色宽款包'"):
        fashion_set.parse_caption(text)
    with pytest.raises(InputError, match="language 'de': expected one of en, zh"):
        fashion_set.caption(Shown(0, 0, 0), "de")
