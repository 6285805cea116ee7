"""Captions and their images: of a file like COCO's, of a folder, and drawn."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from coco_set import CocoCaptions, Drawings, prepared
from cogview_jax.data.records import BadRecord
from cogview_jax.evaluation.captioned_sets import open_captioned
from cogview_jax.evaluation.image_sets import open_folder
from cogview_jax.runtime.errors import InputError


def image(number):
    return np.full((6, 8, 3), 20 * number, np.uint8)


@pytest.fixture
def coco(tmp_path):
    """Five images with two captions each, in COCO's format; image 3 is missing."""
    (tmp_path / "val").mkdir()
    found = {"images": [], "annotations": []}
    for number in range(5):
        found["images"].append({"id": 100 + number, "file_name": f"{number}.png"})
        for which in "ab":
            text = f"caption  {which} of\nimage {number}"
            found["annotations"].append({"image_id": 100 + number, "caption": text, "id": 1})
        if number != 3:
            Image.fromarray(image(number)).save(tmp_path / "val" / f"{number}.png")
    return found, str(tmp_path / "val")


def written(found, tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps(found))
    return str(tmp_path / "captions.json")


def test_captions_of_coco_have_their_images(coco, tmp_path, capsys):
    found, folder = coco
    file = written(found, tmp_path)
    captioned = open_captioned(file, folder, count=10, size=0, seed=1)
    assert sorted(captioned.texts) == [f"caption {w} of image {n}" for w in "ab" for n in range(5)]
    for text, shown in zip(captioned.texts, captioned.images.read(range(10)), strict=True):
        number = int(text[-1])
        if number == 3:
            assert isinstance(shown, BadRecord)
        else:
            np.testing.assert_array_equal(shown, image(number))
    some = open_captioned(file, folder, count=3, size=0, seed=1)
    assert some.texts == captioned.texts[:3]
    assert open_captioned(file, folder, count=10, size=0, seed=2).texts != captioned.texts
    more = open_captioned(file, folder, count=11, size=0, seed=1)
    assert more.texts == captioned.texts
    assert "captions.json has 10 captions, all of which are taken" in capsys.readouterr().err
    with pytest.raises(InputError, match="expected the folder of its images, too"):
        open_captioned(file, None, count=1, size=0, seed=1)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link.png", "", 7])
def test_a_listing_opens_nothing_outside_the_folder(coco, tmp_path, name):
    found, folder = coco
    Image.fromarray(image(9)).save(tmp_path / "secret.png")
    (tmp_path / "val" / "link.png").symlink_to(tmp_path / "secret.png")
    found["images"][0]["file_name"] = name
    found["annotations"] = found["annotations"][:1]
    captioned = open_captioned(written(found, tmp_path), folder, count=1, size=0, seed=0)
    (shown,) = captioned.images.read([0])
    assert isinstance(shown, BadRecord)


def test_other_files_are_refused(tmp_path):
    for content in ({"images": []}, [1], {"images": [{"id": 1}], "annotations": []}):
        with pytest.raises(InputError, match="is no file of captions in COCO's format"):
            open_captioned(written(content, tmp_path), str(tmp_path), count=1, size=0, seed=0)


def test_a_folder_gives_captioned_images_and_leaves_bad_ones_out(tmp_path, capsys):
    for number in range(4):
        Image.fromarray(image(number)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "2.png").write_bytes(b"broken")
    captioned = open_captioned(None, str(tmp_path), count=3, size=0, seed=0)
    assert sorted(captioned.texts) == ["text 0", "text 1", "text 3"]
    for text, shown in zip(captioned.texts, captioned.images.read(range(3)), strict=True):
        np.testing.assert_array_equal(shown, image(int(text[-1])))
    assert open_captioned(None, str(tmp_path), count=4, size=0, seed=0).texts == captioned.texts
    assert "has 3 readable images with a caption, all of which" in capsys.readouterr().err
    for number in (0, 1, 3):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(InputError, match="has 0 readable images with a caption"):
        open_captioned(None, str(tmp_path), count=4, size=0, seed=0)


def test_ids_that_name_no_image_or_two_are_refused(coco, tmp_path):
    found, folder = coco
    found["annotations"][0]["image_id"] = 777
    with pytest.raises(InputError, match="no image has the id 777 of the caption '"):
        open_captioned(written(found, tmp_path), folder, count=1, size=0, seed=0)
    found["images"] += [{"id": 777, "file_name": name} for name in ("a.png", "a.png")]
    assert open_captioned(written(found, tmp_path), folder, count=1, size=0, seed=0).texts
    found["images"].append({"id": 777, "file_name": "b.png"})
    with pytest.raises(InputError, match="two images have the id 777: 'a"):
        open_captioned(written(found, tmp_path), folder, count=1, size=0, seed=0)


def test_drawings_alternate_in_language():
    captioned = open_captioned(None, None, count=7, size=32, seed=0)
    assert len(captioned.texts) == len(captioned.images) == 7
    assert [text.isascii() for text in captioned.texts[:4]] == [True, False, True, False]
    assert all(shown.shape == (32, 32, 3) for shown in captioned.images.read(range(7)))


def test_the_images_of_a_sampling_job_are_those_it_lists(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("images/0.png", "images/1.png", "grid.png"):
        Image.fromarray(image(1)).save(tmp_path / name)
    lines = [{"prompt": f"p{i}", "file": f"images/{i}.png"} for i in range(2)]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_folder(str(tmp_path), "--generated", captions=True)
    assert [source[i].captions for i in range(len(source))] == [("p0",), ("p1",)]
    with pytest.raises(InputError, match=r"--generated .*nowhere: expected a folder of images"):
        open_folder(str(tmp_path / "nowhere"), "--generated")


def test_a_caption_that_is_no_text_is_refused(coco, tmp_path):
    """It would be sampled as its name in Python, None."""
    image = {"id": 1, "file_name": "1.png"}
    found = {"images": [image], "annotations": [{"image_id": 1, "caption": None}]}
    file = tmp_path / "nothing.json"
    file.write_text(json.dumps(found))
    with pytest.raises(InputError, match="the caption None of an annotation is no text"):
        open_captioned(str(file), str(tmp_path), count=1, size=8, seed=0)


# ---- TensorFlow data sets


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A data_dir with coco_captions/2014 of 6 + 3 images, image 2 of "val" broken; and drawings."""
    folder = tmp_path_factory.mktemp("tfds")
    pixels = {n: image(n) for n in range(1, 10)}
    texts = {n: [f"caption {k} of {n}" for k in range(5)] for n in pixels}
    splits = {"val": range(1, 7), "restval": range(7, 10)}
    prepared(CocoCaptions, folder, splits, pixels | {2: None}, texts)
    prepared(Drawings, folder, {"train": [1]}, pixels, texts)
    return str(folder)


def test_a_tensorflow_data_set_gives_one_caption_of_each_image(tfds_dir, capsys):
    given = "tfds:coco_captions/2014:val"
    captioned = open_captioned(given, tfds_dir, count=9, size=0, seed=4)
    said = capsys.readouterr().err
    assert "coco_captions/2014/1.1.0/val has 5 readable images with a caption, all of" in said
    assert "1 record cannot be used, such as coco_captions/2014/1.1.0/val/" in said
    numbers = [int(text[-1]) for text in captioned.texts]
    assert sorted(numbers) == [1, 3, 4, 5, 6]
    for text, shown in zip(captioned.texts, captioned.images.read(range(5)), strict=True):
        np.testing.assert_array_equal(shown, image(int(text[-1])))
    assert captioned.name == "5 captions of coco_captions/2014/1.1.0/val"
    assert captioned.provenance["data_set"] == {
        "name": "coco_captions/2014",
        "version": "1.1.0",
        "split": "val",
        "feature": "captions/text",
        "caption": "one of each image's, at random by seed 4",
    }
    again = open_captioned(given, tfds_dir, count=9, size=0, seed=4)
    assert (again.texts, again.images.identity) == (captioned.texts, captioned.images.identity)
    other = open_captioned(given, tfds_dir, count=9, size=0, seed=5)
    assert {text[-1]: text for text in other.texts} != {text[-1]: text for text in again.texts}
    assert other.images.identity != captioned.images.identity


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ("coco_captions/2014:1.1.0:restval:captions/text", [7, 8, 9]),
        ("coco_captions:val[4:]+restval[:2]", [5, 6, 7, 8]),
    ],
)
def test_versions_features_and_parts_of_splits(tfds_dir, given, numbers):
    captioned = open_captioned(f"tfds:{given}", tfds_dir, count=4, size=0, seed=0)
    assert sorted(int(text[-1]) for text in captioned.texts) == numbers


def test_captions_of_another_feature(tfds_dir):
    name = "tfds:coco_captions/2014:restval:image/filename"
    captioned = open_captioned(name, tfds_dir, count=3, size=0, seed=0)
    assert sorted(captioned.texts) == [f"{n}.png" for n in (7, 8, 9)]


def test_data_that_changed_are_other_images(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir, tmp_path / "tfds")
    given = "tfds:coco_captions/2014:restval"
    first = open_captioned(given, str(tmp_path / "tfds"), count=3, size=0, seed=0)
    (file,) = (tmp_path / "tfds").rglob("*restval*record*")
    os.utime(file, (1, 1))
    second = open_captioned(given, str(tmp_path / "tfds"), count=3, size=0, seed=0)
    assert second.texts == first.texts
    assert second.images.identity != first.images.identity


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("coco_captions/2014", "expected tfds:NAME:SPLIT or tfds:NAME:SPLIT:FEATURE, such as"),
        ("coco_captions/2014:val[", "expected tfds:NAME:SPLIT or"),
        (
            "coco_captions/2017:val",
            r"no such prepared .*`tfds build coco_captions/2017 --file_form",
        ),
        ("coco_captions/2014:9.9.9:val", "no such prepared data set in"),
        ("coco_captions/2014:test", r"split='test': choices .*/2014/1.1.0 are val, restval, or"),
        ("coco_captions/2014:val:objects/label", "'objects/label' .*that is a ClassLabel; choices"),
        ("coco_captions/2014:val:text", "'text' .*choices are captions/text, image/filename"),
        (
            "drawings:train",
            "no such feature; choices are none: no feature of image, label is a Text",
        ),
    ],
)
def test_what_a_tensorflow_data_set_does_not_have(tfds_dir, given, message):
    with pytest.raises(InputError, match=message) as error:
        open_captioned(f"tfds:{given}", tfds_dir, count=1, size=0, seed=0)
    assert str(error.value).startswith(f"--captions tfds:{given}: ")
    assert "\n" not in str(error.value)
