"""The source of embedded emoji: records, captions, sizes, and the same place after a break."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import features

from cogview_jax.data import emoji_set
from cogview_jax.data.loader import batches
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.emoji import Emoji
from cogview_jax.data.sources.source import Source, SourceConfig
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from emoji_tiles import cropped


def test_a_config_opens_both_splits():
    source = build(SourceConfig, {"kind": "emoji"}).open()
    held_out = build(SourceConfig, {"kind": "emoji", "split": "held_out"}).open()
    assert isinstance(source, Source)
    assert (len(source), len(held_out)) == (768, 256)
    keys = [each.key(i) for each in (source, held_out) for i in range(len(each))]
    styles, codes = ("noto", "flat", "3d", "high_contrast"), [c.code for c in emoji_set.concepts()]
    assert sorted(keys) == sorted(f"emoji/{style}/{code}" for style in styles for code in codes)
    assert held_out.describe() == (
        "256 embedded emoji, split 'held_out' of 256 concepts in 4 styles"
    )


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_records_are_tiles_with_their_captions(split):
    source = Emoji(split=split).open()
    numbers = {concept.code: i for i, concept in enumerate(emoji_set.concepts())}
    for i in range(0, len(source), 17):
        record = source[i]
        assert record.key == source.key(i)
        _, style, code = record.key.split("/")
        np.testing.assert_array_equal(record.image, cropped(style, numbers[code]))
        assert record.image.flags.writeable
        assert len(record.captions) == 2
        for text in record.captions:
            concept, read = emoji_set.parse_caption(text)
            assert (concept.code, read.name) == (code, style)
        assert record.captions[0].isascii()
        assert "风格的" in record.captions[1]


def test_a_language_may_be_chosen():
    both = Emoji().open()[5].captions
    for keys, captions in (
        (("caption_en",), both[:1]),
        (("caption_zh",), both[1:]),
        (("caption_zh", "caption_en"), both[::-1]),
    ):
        assert Emoji(caption_keys=keys).open()[5].captions == captions


def test_styles_and_one_caption_for_all_may_be_chosen():
    every = Emoji().open()
    flat = Emoji(styles=("flat",), caption="An image of flat style").open()
    wanted = [i for i in range(len(every)) if every.key(i).startswith("emoji/flat/")]
    assert [flat.key(i) for i in range(len(flat))] == [every.key(i) for i in wanted]
    assert flat.describe() == (
        "192 embedded emoji, split 'train' of 256 concepts in 1 style, each captioned"
        " 'An image of flat style'"
    )
    for i in (0, 191):
        np.testing.assert_array_equal(flat[i].image, every[wanted[i]].image)
        assert flat[i].captions == ("An image of flat style",)
    two = Emoji(styles=("3d", "noto"), split="held_out").open()
    assert len(two) == 128
    assert {two.key(i).split("/")[1] for i in range(128)} == {"3d", "noto"}


def test_smaller_pictures_are_averages():
    whole, half = Emoji().open()[9].image, Emoji(size=32).open()[9].image
    means = whole.reshape(32, 2, 32, 2, 3).astype(float).mean((1, 3))
    assert half.shape == (32, 32, 3)
    assert np.abs(half - means).max() <= 1  # Pillow rounds after each of its two passes.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 65}, "config.size = 65: expected 8 to 64"),
        ({"split": "val"}, "config.split = 'val': choices are 'train', 'held_out'"),
        ({"caption_keys": ("caption_de",)}, "'caption_de' is none of caption_en, caption_zh"),
        (
            {"styles": ("flat", "oil")},
            "config.styles = ('flat', 'oil'): 'oil' is none of noto, flat, 3d, high_contrast",
        ),
        ({"path": "x"}, "config.path: kind 'emoji' has no such setting"),
        ({"max_pixels": 4095}, "data.source.max_pixels = 4095: expected at least 4096"),
    ],
)
def test_what_a_section_cannot_say(settings, message):
    with pytest.raises(InputError) as error:
        build(SourceConfig, {"kind": "emoji", **settings}).open()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pillow_without_webp_is_told_at_the_start(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(InputError, match="this installation of Pillow cannot read"):
        Emoji().open()


def test_a_resumed_stream_reads_on_at_the_same_place(tmp_path):
    def read(start: int, count: int, folder: str) -> list[np.ndarray]:
        stream = batches(
            dataclasses.replace(Emoji(), size=16).open(),
            global_batch=32,
            seed=3,
            transform=lambda record, generator: (
                record.image,
                np.array(record.captions[generator.integers(2)], "U60"),
            ),
            skipped=SkippedLog(tmp_path / folder),
            start=start,
        )
        found = list(itertools.islice(stream, count))
        stream.close()
        return found

    whole, rest = read(0, 30, "whole"), read(19, 11, "rest")
    for resumed, unbroken in zip(rest, whole[19:], strict=True):
        for one, other in zip(resumed, unbroken, strict=True):
            np.testing.assert_array_equal(one, other)
    # An epoch is 24 batches, and holds each pair once: its three captions differ in style.
    texts = [str(text) for _, captions in whole[:24] for text in captions]
    found = {emoji_set.parse_caption(text) for text in texts}
    assert len(texts) == len(found) == 768
