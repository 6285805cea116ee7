"""A study on disk: what is in it, in which order raters see it, and what a damaged one says."""

import itertools
import json
import shutil

import numpy as np
import pytest

from cogview_jax.evaluation.human_study import check_systems, is_study, open_study, write_study
from cogview_jax.runtime.errors import InputError
from small_study import SYSTEMS, images, rate, small_study


def test_a_study_can_be_moved_and_its_images_are_pixels_alone(tmp_path):
    small_study(tmp_path / "one", 2, seed=5)
    shutil.move(tmp_path / "one", tmp_path / "other")
    study = open_study(tmp_path / "other")
    assert (study.captions, study.names, study.seed) == (("caption 0", "caption 1"), SYSTEMS, 5)
    assert study.systems[1].source == "the okapi source"
    for name, caption in itertools.product(SYSTEMS, range(2)):
        data = study.png(caption, name)
        np.testing.assert_array_equal(study.pixels(caption, name), images(name, 2)[caption])
        assert _chunks(data) == {b"IHDR", b"IDAT", b"IEND"}


def _chunks(data):
    """The types of the chunks of a PNG file."""
    types, at = set(), 8
    while at < len(data):
        types.add(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4])
    return types


def test_orders_are_balanced_and_stay(tmp_path):
    study, other = small_study(tmp_path / "a", 5), small_study(tmp_path / "b", 5, seed=1)
    raters = [f"rater{i}" for i in range(600)]
    systems = [study.system_order(rater, 3) for rater in raters]
    captions = [study.caption_order(rater) for rater in raters]
    assert all(sorted(order) == sorted(SYSTEMS) for order in systems)
    assert all(sorted(order) == list(range(5)) for order in captions)
    # Each of six orders is seen by about 100: a binomial of 600 and 1/6 has a deviation of 9.1.
    each = [systems.count(list(order)) for order in itertools.permutations(SYSTEMS)]
    assert min(each) > 64
    assert max(each) < 136
    first = np.bincount([order[0] for order in captions])  # 120, deviation 9.8
    assert min(first) > 81
    assert max(first) < 159
    # The order of one caption tells nothing of the next.
    same = sum(study.system_order(rater, 0) == study.system_order(rater, 1) for rater in raters)
    assert 64 < same < 136
    assert study.system_order("ann", 0) == open_study(tmp_path / "a").system_order("ann", 0)
    assert any(study.system_order(r, 0) != other.system_order(r, 0) for r in raters[:20])


def test_what_orders_are_does_not_change(tmp_path):
    """Or raters that go on would see images under other numbers."""
    study = small_study(tmp_path / "a", 5)
    assert study.caption_order("ann") == [3, 2, 4, 1, 0]
    assert study.system_order("ann", 1) == ["tapir", "quagga", "okapi"]


def test_a_study_with_ratings_is_not_replaced(tmp_path):
    study = small_study(tmp_path / "a")
    rate(study, "ann", 0)
    with pytest.raises(InputError, match="is there already: choose another"):
        small_study(tmp_path / "a")
    assert (tmp_path / "a" / "ratings" / "ann.jsonl").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"has no study\.json: expected a study, or a new folder"):
        is_study(tmp_path / "b")


def test_a_study_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield images("okapi", 1)[0]
        raise InputError("no more")

    made = {"quagga": images("quagga", 2), "okapi": broken()}
    with pytest.raises(InputError, match="no more"):
        write_study(tmp_path / "a", ["x", "y"], {name: "" for name in made}, made, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], r"1 systems \(a\): a study compares 2 to 8, each --system NAME=PATH"),
        ([], r"0 systems \(none\)"),
        (["a", "../b"], "--system '../b': expected a name"),
        (["a", ".b"], "--system '.b': expected a name"),
        (["a", "A"], "expected different names"),
        ([str(i) for i in range(9)], "9 systems"),
    ],
)
def test_names_of_systems(names, message):
    with pytest.raises(InputError, match=message):
        check_systems(names)


def test_damage_is_named(tmp_path):
    study = small_study(tmp_path / "a")
    with pytest.raises(InputError, match="expected the folder of a study, which evaluate"):
        open_study(tmp_path / "nowhere")
    image = tmp_path / "a" / "images" / "okapi" / "0002.png"
    data = image.read_bytes()
    image.write_bytes(study.png(2, "tapir"))
    with pytest.raises(InputError, match=r"okapi/0002\.png is not the image that the study was"):
        open_study(tmp_path / "a")
    image.unlink()
    with pytest.raises(InputError, match=r"okapi/0002\.png is missing"):
        open_study(tmp_path / "a")
    image.write_bytes(data)
    about = json.loads((tmp_path / "a" / "study.json").read_text())
    for change, message in (
        ({"format": 9}, "expected a study of format 1"),
        ({"captions": []}, "is damaged: expected an image of each caption"),
        ({"captions": None}, "is damaged"),
        ({"seed": "x"}, "is damaged"),
        ({"seed": float("inf")}, "is damaged: OverflowError"),
        ({"captions": ["\ud800", *about["captions"][1:]]}, "is damaged: a caption is no text"),
        ({"systems": [about["systems"][0] | {"name": "../x"}] * 2}, "is damaged"),
    ):
        (tmp_path / "a" / "study.json").write_text(json.dumps(about | change))
        with pytest.raises(InputError, match=message):
            open_study(tmp_path / "a")
    (tmp_path / "a" / "study.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        open_study(tmp_path / "a")
