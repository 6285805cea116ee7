"""A survey of a folder: what it writes, what it suggests, and that a config takes that."""

import html
import json
import re
import shlex
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cogview_jax.runtime.config_fill import fill
from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.experiment import experiment_type, read_experiment
from cogview_jax.tasks.survey import FILES, survey_data
from cogview_jax.tokenizers.text import TextConfig, TextTokenizer, train_text_tokenizer

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
THINGS = ("circle", "star", "square", "heart", "ring")
CAPTIONS = [f"a {colour} {thing} on paper" for colour in COLOURS for thing in THINGS]
LONG = CAPTIONS[0] + ", and a good many more words" * 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """30 captioned images, of which the first has a long caption and another is its copy."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i, caption in enumerate(CAPTIONS):
        pixels = rng.integers(100, 200, (16, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(caption if i else LONG)
    shutil.copy(folder / "00.png", folder / "copy.png")
    (folder / "copy.txt").write_text("a copy")
    (folder / "30.png").write_bytes(b"no image")
    (folder / "30.txt").write_text("a caption")
    (folder / "notes.pdf").write_text("")
    return folder


def config(images, stage="transformer", **changes):
    settings = {"stage": stage, "train": {"steps": 9, "global_batch": 8}, "data": {}}
    settings["data"]["source"] = {"kind": "folder", "path": str(images)}
    for name, value in changes.items():
        *sections, last = name.split("__")
        place = settings
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    filled = ConfigDict(settings)
    fill(filled, experiment_type(settings))
    return filled


def surveyed(config, out, count=0):
    survey_data(config, {}, str(out), count)
    return json.loads((out / "survey.json").read_text(encoding="utf-8"))


def taken(config, suggestions):
    """The experiment of a config with the flags of all suggestions."""
    settings = config.to_dict()
    for flag in shlex.split(" ".join(each["flags"] for each in suggestions)):
        name, value = re.fullmatch(r"--config\.([a-z_.]+)=(.*)", flag).groups()
        *sections, last = name.split(".")
        place = settings
        for section in sections:
            place = place[section]
        is_path = value.startswith("/")
        place[last] = value if is_path else json.loads(f"[{value}]" if "," in value else value)
    return read_experiment(settings)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The survey of a transformer's data whose text region is too short, and its config."""
    given = config(images, layout__text_length=12, data__text__pieces=400)
    out = tmp_path_factory.mktemp("survey") / "of mine"  # flags are quoted as a shell needs it
    return surveyed(given, out), given, out


def test_a_survey_is_a_folder_of_four_files(whole):
    report, _, out = whole
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert (out / "exact_duplicates.txt").read_text() == "copy.png\n"
    page = html.unescape((out / "survey.html").read_text(encoding="utf-8"))
    assert all(suggestion["flags"] in page for suggestion in report["suggestions"])
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert report["records"] == {"all": 32, "read": 32, "used": 31, "filtered": 0, "skipped": 1}
    assert "ignored 1: 1 of ending .pdf (notes.pdf)" in report["source"]


def test_tokens_are_those_of_the_tokenizer_that_prepare_would_train(whole):
    report, _, _ = whole
    texts = [LONG, *CAPTIONS[1:], "a copy"]
    text = train_text_tokenizer(texts, TextConfig(pieces=400))
    lengths = sorted(len(text.encode(each)) for each in texts)
    found = report["captions"]["tokens"]
    assert (found["min"], found["max"]) == (lengths[0], lengths[-1])
    assert found["median"] == lengths[15]
    assert report["captions"]["cut"] == sum(length > 12 for length in lengths) > 0


def test_suggestions_are_flags_that_mend_what_was_found(whole, tmp_path):
    report, given, _ = whole
    flags = " ".join(each["flags"] for each in report["suggestions"])
    assert re.search(r"--config.layout.text_length=\d+", flags)
    assert re.search(r"--config.data.filter.exclude=.+exact_duplicates.txt", flags)
    mended = taken(given, report["suggestions"])
    settings = given.to_dict()
    settings["layout"]["text_length"] = mended.layout.text_length
    settings["vocabulary"]["text"] = mended.vocabulary.text
    settings["data"]["text"]["pieces"] = mended.data.text.pieces
    settings["data"]["filter"]["exclude"] = mended.data.filter.exclude
    again = surveyed(settings, tmp_path / "again")
    assert (again["captions"]["cut"], again["suggestions"]) == (0, [])
    assert (again["records"]["used"], again["records"]["filtered"]) == (30, 1)


def test_an_image_tokenizers_pixels_are_those_of_its_squares(images, tmp_path):
    given = config(images, "image_tokenizer", model__image_size=16)
    given.data.source.require_captions = False
    report = surveyed(given, tmp_path / "out")
    files = [path for path in sorted(images.glob("*.png")) if path.name != "30.png"]
    squares = np.stack([np.asarray(Image.open(path))[:, 4:20] for path in files]) / 255
    np.testing.assert_allclose(report["pixels"]["mean"], squares.mean(axis=(0, 1, 2)), atol=6e-5)
    np.testing.assert_allclose(report["pixels"]["std"], squares.std(axis=(0, 1, 2)), atol=6e-5)
    assert "tokens" not in report["captions"]
    assert report["problems"] == []
    larger = config(images, "image_tokenizer", model__image_size=32)
    (enlarged,) = surveyed(larger, tmp_path / "larger", count=20)["problems"]
    assert "shorter side below model.image_size = 32 and are enlarged" in enlarged
    mended = taken(given, report["suggestions"]).model
    np.testing.assert_allclose(mended.mean, squares.mean(axis=(0, 1, 2)), atol=6e-4)
    np.testing.assert_allclose(mended.std, squares.std(axis=(0, 1, 2)), atol=6e-4)


def test_a_given_tokenizer_is_used_and_judged(images, tmp_path):
    other = train_text_tokenizer(["一只猫", "一只狗", "两只猫"], TextConfig(300))
    other.save(tmp_path / "text.model")
    given = config(images, data__text_tokenizer=str(tmp_path / "text.model"))
    report = surveyed(given, tmp_path / "out")
    longest = max(len(other.encode(text)) for text in (LONG, *CAPTIONS))
    assert report["captions"]["tokens"]["max"] == longest
    assert "text_pieces" not in report
    assert any("have no token in data.text_tokenizer" in each for each in report["problems"])
    assert TextTokenizer.load(tmp_path / "text.model").unknown_share(CAPTIONS) > 0.5


def test_too_few_pieces_and_too_many_bad_records_are_warned_of(images, tmp_path):
    given = config(images, data__text__pieces=20, data__max_skipped=0.0)
    report = surveyed(given, tmp_path / "out")
    assert "tokens" not in report["captions"]
    share, pieces = report["problems"]
    assert share.startswith("3.1% of the records cannot be used, more than data.max_skipped = 0")
    assert "data.text.pieces = 20, but single characters take" in pieces
    mended = taken(given, report["suggestions"]).data.text
    assert len(train_text_tokenizer(CAPTIONS, mended)) <= mended.pieces


def test_no_more_pieces_are_suggested_than_a_small_set_gives(tmp_path):
    for i, caption in enumerate(("a red circle", "a blue star", "a red star")):
        Image.new("RGB", (16, 16), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    captions = ["a red circle", "a blue star", "a red star"]
    most = len(train_text_tokenizer(captions, TextConfig(2000)))
    assert 256 < most < 512
    # As many as there are, where far more or too few are asked for; else nothing is suggested.
    for asked, expected in ((2000, {str(most)}), (40, {str(most)}), (most + 9, set())):
        report = surveyed(config(tmp_path, data__text__pieces=asked), tmp_path / f"{asked}")
        flags = " ".join(each["flags"] for each in report["suggestions"])
        assert {*re.findall(r"(?:text\.pieces|vocabulary\.text)=(\d+)", flags)} == expected
        assert max(map(int, report["text_pieces"])) <= most


def test_a_run_that_is_not_there_yet_is_not_needed(images, tmp_path, capsys):
    given = config(images, **{"data__from": str(tmp_path / "codec")})
    assert surveyed(given, tmp_path / "out", count=5)["records"]["read"] == 5
    assert "codec is not there: what the config says of the data" in capsys.readouterr().err


def test_a_survey_is_replaced_whole_and_nothing_else_is(images, tmp_path, monkeypatch):
    given, out = config(images), tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").touch()
    first = surveyed(given, out, count=9)
    second = surveyed(given, out, count=12)
    assert (first["records"]["read"], second["records"]["read"]) == (9, 12)
    (out / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match=r"other files than a survey, such as letter\.txt"):
        surveyed(given, out)
    (out / "letter.txt").unlink()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cogview_jax.tasks.survey.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        surveyed(given, out)
    assert json.loads((out / "survey.json").read_text()) == second
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sources_of_any_kind_are_surveyed(tmp_path):
    emoji = config("", data__source={"kind": "emoji", "size": 16}, layout__text_length=16)
    report = surveyed(emoji, tmp_path / "emoji", count=40)
    assert report["records"]["all"] == 768
    assert {"Latin", "Han"} <= set(report["captions"]["scripts"])
    assert report["images"]["most_common_sizes"] == {"16 x 16": 40}


def test_no_page_is_made_of_records_that_are_all_bad(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "1.txt").write_text("a caption")
    with pytest.raises(InputError, match="none of the 1 records that were read can be used: 1 x"):
        surveyed(config(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
