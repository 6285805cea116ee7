"""How well a style is learned: what the benchmark asks for, counts and refuses."""

import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cogview_jax import load
from cogview_jax.data import emoji_set
from cogview_jax.evaluation.benchmark import ImageOptions, Options
from cogview_jax.evaluation.benchmarks import style
from cogview_jax.evaluation.captioned_sets import ArrayImages
from cogview_jax.evaluation.report import evaluate
from cogview_jax.runtime.errors import InputError
from emoji_tiles import cropped

#: Concepts that the style is learned from, and those that are left out.
SEEN, LEFT_OUT = range(12), (20, 17, 30)
PATTERN = "{object} of bluish style"


def bluish(number):
    """A concept in a style that is none of the embedded ones."""
    return (cropped("flat", number) * (0.4, 0.6, 1.0)).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder as `examples/emoji/make.sh folder --embedded` writes it."""
    place = tmp_path_factory.mktemp("style")
    for split, numbers in (("train", SEEN), ("held_out", LEFT_OUT)):
        (place / split / "bluish").mkdir(parents=True)
        lines = []
        for number in numbers:
            file = f"bluish/{emoji_set.concepts()[number].code}.png"
            Image.fromarray(bluish(number)).save(place / split / file)
            lines.append(json.dumps({"file": file, "caption": "not read"}))
        (place / split / "captions.jsonl").write_text("\n".join(lines))
    return place


@pytest.fixture(scope="module")
def model(chain):
    """It knows neither emoji nor the style."""
    return load(chain.run / "bundle")


def options(data, **changes):
    images = {"real": str(data / "held_out"), "prompts": (PATTERN,), **changes}
    return Options(count=6, images=ImageOptions(**images))


def measured(chain, data, out):
    evaluate(style, str(chain.run / "bundle"), str(out), options(data))
    return json.loads(out.read_text())


def test_a_bundle_is_asked_for_each_concept_that_is_left_out(chain, data, tmp_path):
    """Of a bundle that knows neither emoji nor the style, by pixels."""
    report = measured(chain, data, tmp_path / "report.json")
    assert (report["prompts"], report["images"]) == (3, 6)
    assert report["judge"] == {"features": {"name": "pixels"}, "style_learned_from": 12}
    assert report["chance"] == {"concept": 1 / 256, "style": 1 / 5, "both": 1 / 1280}
    assert report["ceiling"].keys() == {"concept", "style", "both"}
    assert sum(report["styles"].values()) == pytest.approx(1.0)
    assert report["styles"]["new"] == report["generated"]["style"]
    assert "ceiling" in style.table(report)


@pytest.mark.parametrize("drawn", ["bluish", "high_contrast"])
def test_what_is_generated_is_held_against_what_was_asked(
    chain, data, tmp_path, monkeypatch, drawn
):
    """A model that makes the true images is judged as they are; one of another style is told."""

    draw = bluish if drawn == "bluish" else functools.partial(cropped, drawn)

    def sample(model, prompts, each, folder, options):
        assert list(prompts) == [
            PATTERN.replace("{object}", emoji_set.concepts()[number].en) for number in LEFT_OUT
        ]
        assert each == 2
        side = model.codec.config.image_size
        made = [Image.fromarray(draw(number)).resize((side, side)) for number in LEFT_OUT]
        return ArrayImages(np.repeat(np.stack(made), each, axis=0), "made")

    monkeypatch.setattr(style, "sample_asked", sample)
    # An image tokenizer that loses nothing.
    monkeypatch.setattr(style, "encode_images", lambda model, images, *rest, **more: images)
    report = measured(chain, data, tmp_path / "report.json")
    assert report["ceiling"] == {"concept": 1.0, "style": 1.0, "both": 1.0}
    if drawn == "bluish":
        assert report["generated"] == {"concept": 1.0, "style": 1.0, "both": 1.0}
    else:
        assert report["generated"] == {"concept": 1.0, "style": 0.0, "both": 0.0}
        assert report["styles"] == {name: float(name == drawn) for name in style.STYLES}


def copied(data, tmp_path):
    return shutil.copytree(data, tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"real": None}, "--benchmark style needs --real: expected the folder held_out"),
        ({"prompts": ()}, r"expected one pattern with \{object\} in the place of the concept"),
        ({"prompts": ("a fox",)}, r"--prompt \('a fox',\): expected one pattern"),
        ({"prompts": (PATTERN, PATTERN)}, "expected one pattern"),
    ],
)
def test_what_is_missing_is_told(model, data, changes, message):
    with pytest.raises(InputError, match=message):
        style.run(model, options(data, **changes))


def test_another_folder_is_told(model, data, tmp_path):
    place = copied(data, tmp_path)
    listing = place / "held_out" / "captions.jsonl"
    line, *rest = listing.read_text().splitlines()
    listing.write_text("\n".join([line, *rest, line]))
    with pytest.raises(InputError, match="some concepts are there twice"):
        style.run(model, options(place))
    listing.unlink()
    (place / "held_out" / "bluish" / "mine.png").write_bytes(b"")
    with pytest.raises(InputError, match="mine is no embedded concept"):
        style.run(model, options(place))
    shutil.rmtree(place / "train")
    with pytest.raises(InputError, match=r"train beside it, .*: expected a folder of images"):
        style.run(model, options(place))
