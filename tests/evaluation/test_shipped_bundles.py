"""The bundles of the package: what their card says of them is what they do."""

import re

import numpy as np

import cogview_jax
from cogview_jax.checkpoints.shipped import FOLDER, shipped
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.data import emoji_set
from cogview_jax.data.emoji_words import HUES, colour_of
from cogview_jax.evaluation.benchmark import Options
from cogview_jax.evaluation.benchmarks import emoji

NAMES = ("emoji", "emoji_caption", "emoji_superres")
#: Images of each split.
COUNT = 16


def card(row):
    """The numbers of a row of the card's table: seen, held out, if both are there."""
    (line,) = re.findall(
        rf"^\| {row} \|(.*)\|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    cells = [cell.strip() for cell in line.split("|")]
    return [float(re.match(r"[\d.]+", cell)[0]) for cell in cells if cell]


def measured(name, tmp_path, count=COUNT, **more):
    options = Options(count=count, unfinished=str(tmp_path), **more)
    report = emoji.run(cogview_jax.load(name), options).report
    return [report["seen"], report["held_out"]]


def test_all_are_there_in_half_precision_and_are_small():
    assert tuple(shipped()) == NAMES
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 16e6
    for name in ("emoji", "emoji_superres"):
        for part in ("codec", "transformer"):
            assert open_bundle(name).stored_type(part) == np.float16
    base, adapted = open_bundle("emoji"), open_bundle("emoji_caption")
    assert adapted.sha256("codec") == base.sha256("codec")
    for name in NAMES:
        open_bundle(name).check_fit()


def test_images_show_what_the_card_says_as_often(tmp_path):
    """32 images, judged by their pixels. Where a machine rounds otherwise, one may change."""
    rows = measured("emoji", tmp_path)
    for part in ("concept", "style"):
        right = [COUNT * row["generated"][part] for row in rows]
        np.testing.assert_allclose(right, card(f"{part} of an image"), atol=1)
    # Whatever the card says: chance is 1 of 256.
    seen, held_out = (COUNT * row["generated"]["concept"] for row in rows)
    assert seen > COUNT / 2
    assert held_out >= 2


def test_colours_are_those_that_a_prompt_names():
    """As often as the card says; by chance, of seven hues, it would be one time in seven."""
    colours = HUES * 2
    things = ["tulip"] * len(HUES) + ["balloon"] * len(HUES)
    texts = [f"a {colour.en} {thing}" for colour, thing in zip(colours, things, strict=True)]
    model = cogview_jax.load("emoji")
    assert model.default_sampling == cogview_jax.SamplingConfig(0.5, guidance=2.0)  # the card's
    images = model.decode(model.generate_codes(texts)[:, 0])
    right = [
        colour_of(image, emoji_set.STYLES[0]) == colour
        for image, colour in zip(images, colours, strict=True)
    ]
    np.testing.assert_allclose([sum(right)], card(r"colour that a prompt names \(.*\)"), atol=1)
    assert sum(right) > len(right) / 2


def test_captions_say_what_the_card_says_as_often(tmp_path):
    rows = measured("emoji_caption", tmp_path)
    for part in ("concept", "style"):
        right = [COUNT * row["said"][part] for row in rows]
        np.testing.assert_allclose(right, card(f"{part} in a caption"), atol=1)


def test_larger_images_have_the_error_that_the_card_says(tmp_path):
    rows = measured("emoji_superres", tmp_path, count=4)
    for way, name in (("enlarged", "super-resolution"), ("bicubic", "bicubic")):
        errors = [row["squared_error"][way]["mean"] for row in rows]
        np.testing.assert_allclose(errors, card(rf"MSE, {name} \(of 4\)"), rtol=0.02)
