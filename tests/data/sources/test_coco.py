"""COCO's captions and images: what each image is called and said to be, and what can be wrong."""

import json
import os

import pytest

from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources.coco import Coco
from cogview_jax.data.sources.source import captions_of
from cogview_jax.runtime.errors import InputError
from tar_files import png


def captions(numbers, count=5):
    """What a file of captions holds of images of these numbers."""
    return {
        "info": {"year": 2017},
        "images": [{"id": n, "file_name": f"{n:012}.png", "height": 8} for n in numbers],
        "annotations": [
            {"image_id": n, "id": 10 * n + k, "caption": f"no. {k} of {n}\n"}
            for k in range(count)
            for n in reversed(numbers)
        ],
    }


def write(root, found, name="val2017", images="val2017"):
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / f"captions_{name}.json"
    path.write_text(json.dumps(found))
    (root / images).mkdir(exist_ok=True, parents=True)
    for image in found["images"] if isinstance(found, dict) else ():
        if isinstance(image, dict) and "id" in image:
            (root / images / f"{image['id']:012}.png").write_bytes(png(image["id"]))
    return path


def source(path, **settings):
    return Coco(path=str(path), **settings).open()


@pytest.mark.parametrize("images", ["val2017", "images/val2017", "annotations/val2017"])
def test_five_captions_an_image(tmp_path, images):
    path = write(tmp_path, captions([7, 3, 5]), images=images)
    for given in (path, tmp_path, tmp_path / "annotations"):
        found = source(given)
        assert len(found) == 3
        expected = tuple(f"no. {k} of 3" for k in range(5))
        assert found[1].captions == captions_of(found, 1) == expected
        assert found[1].image[0, 0].tolist() == [3, 1, 2]
        assert found.key(1) == found[1].key == "captions_val2017.json/000000000003.png"
    said = f"3 records of 1 file, 3 with a caption, images in {tmp_path}/{images}; nothing ignored"
    assert found.describe() == said
    os.rename(tmp_path / images, tmp_path / "moved")
    assert source(path, image_dir=str(tmp_path / "moved"))[0].image[0, 0, 0] == 7


def test_bad_records_keep_their_place(tmp_path):
    found = captions([1, 2, 3, 4])
    found["images"] += [{"id": 9}, "x", {"id": 8, "file_name": "../8.png"}]
    found["annotations"] = [each for each in found["annotations"] if each["image_id"] != 2]
    found["annotations"] += [{"image_id": 3, "caption": None}, {"id": 5}, {"image_id": 77}, []]
    write(tmp_path, found)
    os.unlink(tmp_path / "val2017" / f"{1:012}.png")
    os.unlink(tmp_path / "val2017" / f"{4:012}.png")
    os.symlink("/etc/hostname", tmp_path / "val2017" / f"{4:012}.png")
    records = source(tmp_path)
    messages = [
        "image file 000000000001.png: not found",
        "empty caption",
        '"caption" must be a text',
        "a link leads out of the folder of captions_val2017.json",
        'expected "id" and "file_name" of an image',
        'expected "id" and "file_name" of an image',
        '"file_name" leads out of the folder',
    ]
    assert len(records) == len(messages)
    for i, message in enumerate(messages):
        with pytest.raises(BadRecord, match=message) as caught:
            records[i]
        assert caught.value.key == records.key(i)
    assert "ignored 3: 3 annotations without a caption" in records.describe()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"images": []}, 'expected COCO\'s captions: lists "images" and "annotations"'),
        ([], 'expected COCO\'s captions: lists "images" and "annotations"'),
        ({"images": [], "annotations": []}, "captions_val2017.json: lists no image"),
        (
            {"images": [{"id": 1, "file_name": "../1.png"}, "x"], "annotations": []},
            r'none of 2 records can be used, such as ../1.png: "file_name" leads out of the folder',
        ),
        (captions([1], count=0), "captions_val2017.json: 1 image and no caption"),
    ],
)
def test_files_of_something_else(tmp_path, found, message):
    write(tmp_path, found)
    with pytest.raises(InputError, match=message):
        source(tmp_path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"path is empty: name a file of captions"):
        source("")
    with pytest.raises(InputError, match=r"expected a file captions_NAME.json, there is none"):
        source(tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"captions_NAME.json: there is none"):
        source(tmp_path)
    path = write(tmp_path, captions([1]))
    with pytest.raises(InputError, match=r"image_dir='gone': expected a folder of images"):
        source(path, image_dir="gone")
    (tmp_path / "val2017").rename(tmp_path / "other")
    with pytest.raises(InputError, match=r"no folder .*/val2017 of its images: name it as data.s"):
        source(path)
    write(tmp_path, captions([1]), name="train2017")
    with pytest.raises(InputError, match=r"choices are .*captions_train2017.json, .*captions_val"):
        source(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"captions_val2017.json: damaged: not readable as JSON"):
        source(path)


def test_two_images_of_one_id_are_refused(tmp_path):
    found = captions([1, 2])
    found["images"].append({"id": 1, "file_name": "other.png"})
    path = write(tmp_path, found)
    message = (
        r"captions_val2017\.json: two images have the id 1: '000000000001.png' and 'other.png'"
    )
    with pytest.raises(InputError, match=message):
        source(path)


def test_an_image_that_is_listed_again_counts_once(tmp_path):
    found = captions([1, 2])
    found["images"] += found["images"]
    records = source(write(tmp_path, found))
    assert [records.key(i)[-5:] for i in range(len(records))] == ["1.png", "2.png"]
    said = "ignored 2: 2 images that are listed again (such as 000000000001.png)"
    assert records.describe().endswith(said)
