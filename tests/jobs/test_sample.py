"""Prompts from flags and files; what sampling refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from cogview_jax import load
from cogview_jax.data.transforms import center_crop
from cogview_jax.jobs.sample import Draws, complete, read_prompts, text_to_image
from cogview_jax.runtime.errors import InputError


def test_prompts_of_the_flags_come_before_those_of_the_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("一个红色的圆形\n\n  two stars \n", encoding="utf-8")
    assert read_prompts(["first", "second"], str(file)) == [
        *("first", "second", "一个红色的圆形", "two stars")
    ]
    assert read_prompts(["only"], None) == ["only"]


def test_files_without_prompts_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for given, file, message in (
        ([], None, "no prompt: give --prompt TEXT"),
        ([], "empty.txt", "no prompt: give --prompt TEXT"),
        ([], "latin.txt", "latin.txt cannot be read as UTF-8 text"),
        (["x"], "none.txt", "none.txt cannot be read as UTF-8 text"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read_prompts(given, file and str(tmp_path / file))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bundle", "prompts", "changes", "message"),
    [
        ("run", ["a star", " "], {}, "prompt ' ' holds no text"),
        ("run", ["a star"], {"batch_size": 0}, "batch_size 0: both start at 1"),
        ("run", ["a star"], {"precision": "half"}, "precision 'half' is unknown; choose from"),
        ("codec", ["a star"], {}, "the bundle has no transformer and no text, which this needs"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    chain, tmp_path, bundle, prompts, changes, message
):
    folder = chain.run if bundle == "run" else chain.codec
    with pytest.raises(InputError, match=message):
        text_to_image(f"{folder}/bundle", f"{tmp_path}/out", prompts, Draws(**changes))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def pictures(tmp_path):
    """Two files, one of them larger than the codec's pictures and no square, and one broken."""
    generator = np.random.default_rng(0)
    for name, shape in (("a", (32, 32, 3)), ("b", (48, 40, 3))):
        pixels = generator.integers(0, 256, shape).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    return [str(tmp_path / f"{name}.png") for name in ("a", "b", "broken")]


def test_pictures_are_completed_into_a_folder(chain, tmp_path, pictures):
    draws, out = Draws(num_images=2, seed=5), tmp_path / "out"
    complete(f"{chain.run}/bundle", str(out), pictures[:2], ["a red circle"], None, draws)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    model = load(chain.run / "bundle")
    rows = model.codec.config.grid // 2
    assert [(line["image"], line["index"]) for line in lines] == [
        (file, index) for file in pictures[:2] for index in range(2)
    ]
    assert {(line["prompt"], line["seed"], line["keep_rows"]) for line in lines} == {
        ("a red circle", 5, rows)
    }
    for file, (start, stop) in zip(pictures, ((0, 2), (2, 4)), strict=False):
        square = center_crop(np.asarray(Image.open(file)), model.codec.config.image_size)
        expected = model.complete(square, rows, "a red circle", 2, 5)
        for line, picture in zip(lines[start:stop], expected, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(out / line["file"])), picture)
    assert (out / "grid.png").is_file()


@pytest.mark.parametrize(
    ("which", "prompts", "keep_rows", "message"),
    [
        ([], ["a star"], None, "needs a picture to complete: --image FILE"),
        ([0, 1], ["a"] * 3, None, "2 images and 3 prompts: expected one prompt for each, or one"),
        ([0, 2], ["a star"], None, "broken.png cannot be read"),
        ([0], ["a star"], 99, "keep_rows 99: expected 0 to"),
    ],
)
def test_what_cannot_be_completed_leaves_nothing(
    chain, tmp_path, pictures, which, prompts, keep_rows, message
):
    images, out = [pictures[i] for i in which], tmp_path / "out"
    with pytest.raises(InputError, match=message):
        complete(f"{chain.run}/bundle", str(out), images, prompts, keep_rows, Draws())
    assert not out.exists()
