"""Other words for the embedded images, and images in other colours."""

import colorsys

import numpy as np
import pytest

from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.data import emoji_set, emoji_words
from cogview_jax.data.emoji_set import STYLES
from cogview_jax.data.emoji_words import BLUE, GREEN, HUES, ORANGE, PINK, RED, YELLOW
from cogview_jax.data.sources.emoji import Emoji
from cogview_jax.runtime.config import SettingError

NOTO, FLAT, _, HIGH_CONTRAST = STYLES
NAMED = {concept.en: number for number, concept in enumerate(emoji_set.concepts())}


def disc(*colours):
    """A disc on white, of equal slices of some colours."""
    y, x = np.mgrid[-31.5:32, -31.5:32]
    image = np.full((64, 64, 3), 255, np.uint8)
    angle = (np.arctan2(y, x) + np.pi) / (2 * np.pi) * len(colours)
    for number, colour in enumerate(colours):
        image[(x**2 + y**2 < 900) & (angle.astype(int) % len(colours) == number)] = colour
    return image


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("red", (220, 30, 30)),
        ("orange", (245, 140, 30)),
        ("yellow", (250, 220, 50)),
        ("green", (60, 170, 70)),
        ("blue", (40, 110, 220)),
        ("purple", (130, 60, 200)),
        ("pink", (240, 120, 190)),
        ("pink", (250, 160, 160)),
        ("brown", (120, 70, 30)),
        ("black", (30, 30, 40)),
        ("grey", (150, 150, 155)),
    ],
)
def test_a_disc_has_the_colour_that_one_would_call_it(name, rgb):
    assert emoji_words.colour_of(disc(rgb), NOTO).en == name
    # Whatever lies beside it, as long as it is less.
    assert emoji_words.colour_of(disc(rgb, rgb, (90, 200, 200)), NOTO).en == name


def test_what_has_no_colour_of_its_own_gets_none():
    assert emoji_words.colour_of(np.full((64, 64, 3), 255, np.uint8), NOTO) is None
    assert emoji_words.colour_of(disc((220, 30, 30), (40, 110, 220), (60, 170, 70)), NOTO) is None
    assert emoji_words.colour_of(disc((20, 20, 20)), HIGH_CONTRAST) is None


@pytest.mark.parametrize(
    ("name", "colour"),
    [("fox", ORANGE), ("cucumber", GREEN), ("dolphin", BLUE), ("lemon", YELLOW), ("rose", RED)],
)
def test_things_have_their_colours(name, colour):
    for style in (0, 1):
        image = emoji_set.tile(NAMED[name], style)
        assert emoji_words.colour_of(image, STYLES[style]) == colour


def test_hues_are_turned_as_by_the_standard_library():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image[0, 0], image[0, 1] = (255, 255, 255), (0, 0, 0)
    np.testing.assert_array_equal(emoji_words.turned(image, RED, RED), image)
    expected = np.empty_like(image)
    for index in np.ndindex(8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[index] / 255))
        hue = (hue + (PINK.hue - BLUE.hue) / 360) % 1
        expected[index] = np.rint(255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value)))
    found = emoji_words.turned(image, BLUE, PINK)
    # A half may be rounded either way.
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.98
    np.testing.assert_array_equal(found[0, :2], image[0, :2])


def words(name, style, language, colour=None, *, own=True):
    concept = emoji_set.concepts()[NAMED[name]]
    return emoji_words.wordings(concept, style, language, colour, own=own)


def test_wordings():
    assert words("butterfly", FLAT, "en", BLUE) == (
        *("butterfly in flat style", "a butterfly in flat style", "a butterfly"),
        *("a blue butterfly in flat style", "a blue butterfly"),
    )
    assert words("butterfly", FLAT, "zh", BLUE) == (
        *("扁平风格的蝴蝶", "蝴蝶", "扁平风格的蓝色蝴蝶", "蓝色蝴蝶"),
    )
    assert words("butterfly", FLAT, "en", RED, own=False) == (
        *("a red butterfly in flat style", "a red butterfly"),
    )
    assert words("butterfly", FLAT, "zh", RED, own=False) == ("扁平风格的红色蝴蝶", "红色蝴蝶")
    assert words("owl", NOTO, "en") == ("owl in Noto style", "an owl in Noto style", "an owl")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(("grapes", "grapes"), ("cactus", "a cactus"), ("rhinoceros", "a rhinoceros")),
        *(("unicorn", "a unicorn"), ("umbrella", "an umbrella"), ("T-Rex", "a T-Rex")),
    ],
)
def test_articles(name, said):
    assert said in words(name, NOTO, "en")


@pytest.fixture(scope="module")
def source():
    return Emoji(more_words=True).open()


def test_images_in_other_colours_are_what_their_captions_say(source):
    turned = [i for i in range(len(source)) if source.key(i).count("/") == 3]
    assert len(source) - len(turned) == len(emoji_set.pairs("train"))
    assert 600 < len(turned) < 900
    assert {source.key(i).rsplit("/")[-1] for i in turned} == {colour.en for colour in HUES}
    for i in turned[::50]:
        record = source[i]
        style = next(style for style in STYLES if style.name == record.key.split("/")[1])
        colour = emoji_words.colour_of(record.image, style)
        assert colour.en == record.key.split("/")[-1]
        assert all(colour.en in text or colour.zh in text for text in record.captions)


def test_no_image_of_a_held_out_pair_is_seen_in_another_colour(source):
    held_out = Emoji(split="held_out", more_words=True).open()
    pairs = [
        {source.key(i).rsplit("/", source.key(i).count("/") - 2)[0] for i in range(len(source))}
        for source in (source, held_out)
    ]
    assert len(pairs[0]) == 768
    assert len(pairs[1]) == 256
    assert not pairs[0] & pairs[1]


def test_the_images_themselves_stay_as_they_are(source):
    plain = Emoji().open()
    own = {source.key(i): i for i in range(len(source))}
    for i in range(0, len(plain), 97):
        one, other = plain[i], source[own[plain.key(i)]]
        np.testing.assert_array_equal(one.image, other.image)
        assert set(one.captions) < set(other.captions)


def test_the_shipped_text_tokenizer_has_room_for_them(source):
    text = open_bundle("emoji").text()
    longest = max(len(text.encode(each)) for i in range(len(source)) for each in source[i].captions)
    assert longest <= 16


def test_one_text_for_all_is_no_more_words():
    with pytest.raises(SettingError, match="caption = 'An image' and more_words: choose one"):
        Emoji(more_words=True, caption="An image")
