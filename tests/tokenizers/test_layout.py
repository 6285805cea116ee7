"""Rows drawn by hand, and the official tokenizer's."""

import dataclasses
import json

import numpy as np
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.layout import (
    Layout,
    LayoutConfig,
    Region,
    left_padded,
    make_layout,
    size_command,
)
from cogview_jax.tokenizers.vocabulary import Vocabulary

# Codes 0-9, pieces 10-14, then the commands: [PAD] 15, [BOI1] 16, [EOI1] 19, [ROI1] 22, [TINY] 29.
VOCABULARY = Vocabulary(10, 5)
PAD, BOI1, EOI1, ROI1, TINY = 15, 16, 19, 22, 29
LAYOUT = make_layout(LayoutConfig("text_to_image", text_length=3, grid=2), VOCABULARY)


def test_a_caption_row_by_hand():
    layout = make_layout(LayoutConfig("caption", text_length=3, grid=2), VOCABULARY)
    row = layout.example({"text": [0, 4], "image": [9, 0, 3, 7]})
    given = {
        #                |        image      |           |  text |
        "tokens": [TINY, BOI1, 9, 0, 3, 7, EOI1, ROI1, 10, 14, PAD],
        "targets": [BOI1, 9, 0, 3, 7, EOI1, ROI1, 10, 14, PAD, PAD],
        "positions": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        # The end of the text is learned, what pads the row is not.
        "text_weights": [1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0],
        "image_weights": [0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
    }
    assert {name: array.tolist() for name, array in row._asdict().items()} == given
    assert layout.prompt_length("text") == 8
    # The end is the id behind the last piece: one range of ids holds all that may be drawn.
    assert layout.allowed("text") == (10, PAD)


def test_a_super_resolution_row_by_hand():
    """[BOI2] 17, [EOI2] 20, [ROI2] 23; positions begin again at [ROI2]."""
    layout = make_layout(LayoutConfig("super_resolution", text_length=3, grid=2), VOCABULARY)
    row = layout.example({"text": [4], "source": [8], "image": [9, 0, 3, 7]})
    given = {
        #              | text |           |   |     |               |    image   |
        "tokens": [ROI1, 14, TINY, BOI1, 8, EOI1, 23, TINY, 17, 9, 0, 3, 7, 20, PAD],
        "targets": [14, TINY, BOI1, 8, EOI1, 23, TINY, 17, 9, 0, 3, 7, 20, PAD, PAD],
        # Padding stays below the positions that there are.
        "positions": [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6, 7, 7],
        "text_weights": [1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0],
        "image_weights": [0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0],
    }
    assert {name: array.tolist() for name, array in row._asdict().items()} == given
    assert (layout.length, layout.positions) == (16, 8)
    assert [(region.name, region.grid) for region in layout.images] == [("source", 1), ("image", 2)]
    # A prompt has the positions that its row had in training.
    prompt = layout.tokens({"text": [4], "source": [8]})
    assert prompt.tolist() == given["tokens"][:9]
    assert layout.positions_of(prompt).tolist() == given["positions"][:9]
    assert layout.positions_of(layout.tokens({"text": [4]})).tolist() == [0, 1, 2, 3]


def test_super_resolution_without_text_is_the_same_row_without_it():
    sizes = {"task": "super_resolution", "grid": 2}
    parts = {"text": [0, 4], "source": [8], "image": [9, 0, 3, 7]}
    without = make_layout(LayoutConfig(text_length=0, **sizes), VOCABULARY)
    within = make_layout(LayoutConfig(text_length=3, **sizes), VOCABULARY)
    row = without.example(parts)
    padded = within.example(parts | {"text": []})
    assert without.length == within.length - 3
    for ours, expected in zip(row, padded, strict=True):
        np.testing.assert_array_equal(ours, expected[: without.length - 1])


def test_the_paper_s_super_resolution_fits_the_positions_of_pretraining():
    layout = make_layout(LayoutConfig("super_resolution"), Vocabulary())
    assert (layout.length, layout.positions) == (61 + 256 + 4 + 1024 + 4, 1028)


def test_a_training_row_by_hand():
    row = LAYOUT.example({"text": [0, 4], "image": [9, 0, 3, 7]})
    given = {
        #               text      |             image             |
        "tokens": [ROI1, 10, 14, TINY, BOI1, 9, 0, 3, 7, EOI1],
        "targets": [10, 14, TINY, BOI1, 9, 0, 3, 7, EOI1, PAD],
        "positions": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        "text_weights": [1, 1, 1, 1, 0, 0, 0, 0, 1, 0],
        "image_weights": [0, 0, 0, 0, 1, 1, 1, 1, 0, 0],
    }
    assert {name: array.tolist() for name, array in row._asdict().items()} == given
    assert [array.dtype for array in row] == [np.int32] * 3 + [np.float32] * 2
    assert LAYOUT.length == 11


def test_a_full_row_has_no_padding_and_a_row_without_text_has_most():
    full = LAYOUT.example({"text": [1, 2, 3], "image": [0] * 4})
    assert full.targets.tolist() == [11, 12, 13, TINY, BOI1, 0, 0, 0, 0, EOI1]
    assert (full.text_weights + full.image_weights).tolist() == [1] * 10
    empty = LAYOUT.example({"text": [], "image": [0] * 4})
    assert empty.targets.tolist() == [TINY, BOI1, 0, 0, 0, 0, EOI1, PAD, PAD, PAD]
    assert (empty.text_weights + empty.image_weights).tolist() == [1] * 7 + [0] * 3


@pytest.mark.parametrize("task", ["text_to_image", "caption", "super_resolution"])
def test_what_stands_before_the_last_part_weighs_as_asked(task):
    layout = make_layout(LayoutConfig(task, text_length=3, grid=2), VOCABULARY)
    parts = {"text": [0, 4], "image": [9, 0, 3, 7], "source": [8]}
    whole, weighed = layout.example(parts), layout.example(parts, 0.25)
    assert layout.last_part.name == ("text" if task == "caption" else "image")
    # The prompt's last token is the first that has one of the last part as its target.
    prompt = layout.tokens({name: parts[name] for name in parts if name != layout.last_part.name})
    shares = np.where(np.arange(layout.length - 1) < len(prompt) - 1, 0.25, 1)
    for name in ("text_weights", "image_weights"):
        np.testing.assert_array_equal(getattr(weighed, name), getattr(whole, name) * shares)
        assert getattr(weighed, name).dtype == np.float32
    for name in ("tokens", "targets", "positions"):
        np.testing.assert_array_equal(getattr(weighed, name), getattr(whole, name))


def test_long_text_is_cut_in_training_and_refused_in_prompts():
    parts = {"text": [0, 1, 2, 3, 4], "image": [0] * 4}
    cut = LAYOUT.example(parts | {"text": [0, 1, 2]})
    for ours, expected in zip(LAYOUT.example(parts), cut, strict=True):
        np.testing.assert_array_equal(ours, expected)
    with pytest.raises(InputError, match="text has 5 tokens, but the text region holds 3"):
        LAYOUT.tokens({"text": parts["text"]})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"text": [5], "image": [0] * 4}, "text has ids from 5 to 5, expected 0 to 4"),
        ({"text": [-1, 2], "image": [0] * 4}, "text has ids from -1 to 2, expected 0 to 4"),
        ({"text": [1], "image": [0, 1, 2, 10]}, "image has ids from 0 to 10, expected 0 to 9"),
        ({"text": [1], "image": [0, 1, 2, -1]}, "image has ids from -1 to 2, expected 0 to 9"),
        ({"text": [1], "image": [0, 1, 2]}, "image has 3 codes, expected 4"),
        ({"text": [1], "image": [0] * 5}, "image has 5 codes, expected 4"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(InputError, match=message):
        LAYOUT.example(parts)


def test_a_prompt_ends_before_the_first_missing_part():
    assert LAYOUT.tokens({}).tolist() == [ROI1]
    assert LAYOUT.tokens({"text": [2]}).tolist() == [ROI1, 12, TINY, BOI1]
    assert LAYOUT.prompt_length("image") == len(LAYOUT.tokens({"text": [0, 0, 0]})) == 6
    assert LAYOUT.prompt_length("text") == 1


def test_only_ids_of_the_part_may_be_drawn():
    assert LAYOUT.allowed("image") == (0, 10)
    assert LAYOUT.allowed("text") == (10, 15)
    with pytest.raises(InputError, match="text_to_image has no part 'ROI1'"):
        LAYOUT.allowed("ROI1")
    with pytest.raises(InputError, match="no part 'picture'"):
        LAYOUT.prompt_length("picture")


def test_commands_may_repeat_in_other_layouts():
    """The sequence of super-resolution announces two images with the same command."""
    names = ["BASE", "BOI1", ("small", 2), "EOI1", "BASE", "BOI2", ("large", 4)]
    regions = tuple(
        Region("command", name) if isinstance(name, str) else Region("image", *name)
        for name in names
    )
    layout = Layout("two_images", VOCABULARY, regions)
    assert layout.prompt_length("large") == len(layout.tokens({"small": [1, 2]})) == 7


def test_left_padding_by_hand():
    tokens, valid = left_padded([np.array([5, 6, 7]), np.array([8]), np.array([], int)], 4)
    assert tokens.tolist() == [[0, 5, 6, 7], [0, 0, 0, 8], [0, 0, 0, 0]]
    assert valid.astype(int).tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_size_commands():
    sizes = {4: "TINY", 8: "TINY", 9: "SMALL", 16: "SMALL", 32: "BASE", 33: "BIG", 64: "BIG"}
    assert {grid: size_command(grid) for grid in sizes} == sizes


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"task": "text_to_video"}, "'text_to_video' is unknown; choose from text_to_image"),
        ({"text_length": 0}, "text_length = 0: layout.task text_to_image expects at least 1"),
        ({"task": "super_resolution", "text_length": -1}, "text_length = -1: expected 0 to"),
        ({"grid": 0}, "grid = 0: expected 1 to"),
        (
            {"task": "super_resolution", "grid": 9},
            "layout super_resolution with grid 9: expected an even one",
        ),
    ],
    ids=str,
)
def test_configs_without_a_layout_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        make_layout(dataclasses.replace(LayoutConfig(), **setting), Vocabulary())


def test_the_longest_row_is_that_of_the_paper():
    assert make_layout(LayoutConfig(), Vocabulary()).length == 1089


def test_rows_are_those_of_the_official_template(fixtures):
    """The official text ids hold the offset of the text already."""
    tables = json.loads((fixtures / "tokens.json").read_text("utf-8"))
    checked = 0
    for case in tables["text_code_template"]:
        codes, ids = case["codes"], case["ids"]
        grid = round(len(codes) ** 0.5)
        text = np.array(ids[1 : len(ids) - len(codes) - 3]) - tables["img_vocab"]
        if grid > 32 or (len(text) and text.min() < 0):
            continue
        layout = make_layout(LayoutConfig(grid=grid), Vocabulary())
        assert layout.tokens({"text": text, "image": codes}).tolist() == ids
        checked += 1
    assert checked >= 3


def test_codes_of_eight_bytes_are_not_cut_to_four():
    """2**32 + 3 is no code, though its lower half is."""
    wide = np.array([0, 1, 2, 2**32 + 3])
    with pytest.raises(InputError, match="image from 0 to 4294967299"):
        LAYOUT.tokens({"text": [0], "image": wide})
