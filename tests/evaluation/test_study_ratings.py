"""Ratings on disk: none is lost, and none that is wrong counts."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from cogview_jax.evaluation import study_ratings
from cogview_jax.evaluation.study_ratings import (
    append_rating,
    rater_name,
    raters,
    rating_of,
    read_ratings,
)
from cogview_jax.runtime.errors import InputError
from small_study import SYSTEMS, rate, scores, small_study


@pytest.fixture
def study(tmp_path):
    return small_study(tmp_path / "study")


def file_of(study, rater="ann"):
    return study.folder / "ratings" / f"{rater}.jsonl"


@pytest.mark.parametrize(
    ("text", "name"),
    [("ann", "ann"), (" Ann-2 ", "ann-2"), ("李雷", "李雷"), ("Zoë", "zoë"), ("Zoe\u0308", "zoë")],
)
def test_names_of_raters(text, name):
    assert rater_name(text) == name


# A bold A, and a raised one, have no small letter; a j with a caron is two letters when folded.
@pytest.mark.parametrize("text", ["\U0001d400nn", "ᴬnn", "xϒ", "xǰ", "STRASSE", "ΐx"])
def test_every_name_that_is_taken_is_one_of_a_file(study, text):
    rate(study, rater_name(text), 0)
    assert raters(study) == [rater_name(text)] == [rater_name(rater_name(text))]
    assert set(read_ratings(study, raters(study)[0])) == {0}


@pytest.mark.parametrize(
    "text",
    ["", " ", "..", "../ann", "a/b", "a\\b", "a.b", "-a", "_", "a\0", "a\nb", "a" * 33, "a b"],
)
def test_names_that_could_be_paths_are_refused(text):
    with pytest.raises(InputError, match="expected a name of up to 32 letters"):
        rater_name(text)


def test_the_last_rating_of_a_caption_counts(study):
    assert raters(study) == []
    assert read_ratings(study, "ann") == {}
    rate(study, "ann", 2, best="okapi")
    rate(study, "ann", 0, value=1, tapir=5)
    rate(study, "ann", 2, best="tapir")
    rate(study, "bob", 2)
    found = read_ratings(study, "ann")
    assert {caption: rating.best for caption, rating in found.items()} == {2: "tapir", 0: "quagga"}
    assert found[0].scores["tapir"] == dict.fromkeys(found[0].scores["tapir"], 5)
    assert (found[2].best_has_most, found[0].best_has_most) == (True, False)
    assert raters(study) == ["ann", "bob"]
    line = json.loads(file_of(study).read_text().splitlines()[0])
    assert line["order"] == study.system_order("ann", 2)


def test_a_torn_last_line_is_survived_wherever_it_was_cut(study, capsys):
    for caption in range(3):
        rate(study, "ann", caption)
    whole = file_of(study).read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    for cut in (begin + 1, begin + 20, len(whole) - 2):
        file_of(study).write_bytes(whole[:cut])
        assert set(read_ratings(study, "ann")) == {0, 1}
        assert "line 3: no whole line, passed over" in capsys.readouterr().err
        rate(study, "ann", 3)
        assert set(read_ratings(study, "ann")) == {0, 1, 3}
    # Only the end of the line is missing: nothing is lost.
    file_of(study).write_bytes(whole[:-1])
    rate(study, "ann", 3)
    assert set(read_ratings(study, "ann")) == {0, 1, 2, 3}


def test_a_full_disk_is_said_and_what_was_kept_stays(study, monkeypatch):
    rate(study, "ann", 0)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:30]))
        with pytest.raises(OSError, match="No space left"):
            rate(study, "ann", 1)
    assert set(read_ratings(study, "ann")) == {0}
    rate(study, "ann", 1)
    assert set(read_ratings(study, "ann")) == {0, 1}


def test_a_file_does_not_grow_until_it_can_no_longer_be_read(study, monkeypatch):
    rate(study, "ann", 0)
    monkeypatch.setattr(study_ratings, "_LIMIT", int(1.5 * file_of(study).stat().st_size))
    with pytest.raises(OSError, match="File too large"):
        rate(study, "ann", 1)
    assert set(read_ratings(study, "ann")) == {0}


def test_two_raters_at_once_and_one_in_two_windows(study):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: rate(study, ("ann", "bob")[i % 2], i // 2 % 4), range(80)))
    for rater in ("ann", "bob"):
        lines = file_of(study, rater).read_text().splitlines()
        assert len([json.loads(line) for line in lines]) == 40
        assert set(read_ratings(study, rater)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": 4}, "caption '4': expected a number from 0 to 3"),
        ({"caption": True}, "caption 'True': expected"),
        ({"best": "panda"}, "best 'panda': expected one of quagga, okapi, tapir"),
        ({"best": None}, "best 'None'"),
        ({"scores": []}, r"scores '\[\]': expected those of quagga, okapi, tapir"),
        ({"scores": {"okapi": {}}}, "scores 'okapi': expected those of quagga"),
        ({"scores": scores(okapi=6)}, "clarity '6': expected a whole number from 1 to 5"),
        ({"scores": scores(okapi=0)}, "clarity '0'"),
        ({"scores": scores(okapi=True)}, "clarity 'True'"),
        ({"scores": scores(okapi=2.5)}, "clarity '2.5'"),
        ({"scores": scores() | {"tapir": {"clarity": 1}}}, "scores of tapir 'clarity': expected"),
    ],
)
def test_a_wrong_line_is_named(study, change, message):
    rate(study, "ann", 0)
    good = json.loads(file_of(study).read_text())
    with file_of(study).open("a") as file:
        file.write(json.dumps(good | change) + "\n")
    with pytest.raises(InputError, match=rf"ann\.jsonl, line 2: {message}"):
        read_ratings(study, "ann")


@pytest.mark.parametrize("line", ["7", "[]", "{}", "null"])
def test_json_that_is_no_rating_is_named(study, line):
    (study.folder / "ratings").mkdir()
    file_of(study).write_text(f"\n{line}\n")
    with pytest.raises(
        InputError, match="line 2: expected an object with caption, scores and best"
    ):
        read_ratings(study, "ann")


def test_files_that_are_no_raters(study):
    rate(study, "ann", 0)
    (study.folder / "ratings" / ".DS_Store").touch()
    assert raters(study) == ["ann"]
    (study.folder / "ratings" / "Ann B.jsonl").touch()
    with pytest.raises(InputError, match=r"Ann B\.jsonl: expected RATER\.jsonl"):
        raters(study)


def test_names_whose_letters_were_taken_apart(study):
    rate(study, "zoë", 0)
    file_of(study, "zoë").rename(file_of(study, "zoe\u0308"))
    assert raters(study) == ["zoë"]
    rate(study, "zoë", 1)
    assert set(read_ratings(study, "zoë")) == {0, 1}
    assert len(list(file_of(study).parent.iterdir())) == 1
    file_of(study, "zoë").touch()
    with pytest.raises(InputError, match=r"expected RATER\.jsonl"):
        raters(study)


def test_a_link_is_not_followed(study, tmp_path):
    (study.folder / "ratings").mkdir()
    (tmp_path / "diary").write_text("mine\n")
    file_of(study).symlink_to(tmp_path / "diary")
    with pytest.raises(OSError, match="symbolic links"):
        append_rating(study, "ann", 0, rating_of(study, scores(), SYSTEMS[0]))
    assert (tmp_path / "diary").read_text() == "mine\n"


def test_a_link_to_a_folder_is_not_followed(study, tmp_path):
    (tmp_path / "outside").mkdir()
    file_of(study).parent.symlink_to(tmp_path / "outside")
    with pytest.raises(NotADirectoryError):
        append_rating(study, "ann", 0, rating_of(study, scores(), SYSTEMS[0]))
    assert not list((tmp_path / "outside").iterdir())
