"""Folders in both forms, and every way a record in one can be bad."""

import json

import numpy as np
import pytest
from PIL import Image

from cogview_jax.data.folder import FolderSource
from cogview_jax.data.records import BadRecord
from cogview_jax.runtime.errors import InputError


def paint(path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value, 0, 0)).save(path)


def write_lines(folder, *lines) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "captions.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def test_images_with_text_files_recursive_and_sorted(tmp_path):
    for value, name in enumerate(["b/2.JPG", "b/10.png", "a.webp", "c.bmp", "b/c/1.jpeg"]):
        paint(tmp_path / name, value)
        (tmp_path / name).with_suffix(".txt").write_text(f"a picture of {name}\n", "utf-8")
    (tmp_path / "._a.webp").write_bytes(b"not an image")
    (tmp_path / "notes.md").write_text("not an image either")
    source = FolderSource(tmp_path)
    keys = ["a.webp", "b/10.png", "b/2.JPG", "b/c/1.jpeg", "c.bmp"]
    assert [source.key(i) for i in range(len(source))] == keys
    for i, key in enumerate(keys):
        record = source[i]
        assert (record.key, record.captions) == (key, (f"a picture of {key}",))
        assert record.image.shape == (3, 4, 3)
    assert (source[1].image == (1, 0, 0)).all()


def test_a_text_file_holds_a_caption_a_line(tmp_path):
    paint(tmp_path / "1.png", 0)
    (tmp_path / "1.txt").write_bytes("\ufeffa cat\n\n  一只猫 \r\n".encode())
    assert FolderSource(tmp_path)[0].captions == ("a cat", "一只猫")


def test_a_listing_gives_its_lines_in_order(tmp_path):
    paint(tmp_path / "x/b.png", 20)
    paint(tmp_path / "a.png", 10)
    paint(tmp_path / "unlisted.png", 30)
    write_lines(
        tmp_path,
        {"file": "x/b.png", "captions": ["one", "二"]},
        "",
        {"file": "a.png", "caption": " three "},
    )
    source = FolderSource(tmp_path)
    assert [source.key(i) for i in range(len(source))] == ["x/b.png", "a.png"]
    assert [source[i].captions for i in range(2)] == [("one", "二"), ("three",)]
    assert [int(source[i].image[0, 0, 0]) for i in range(2)] == [20, 10]


@pytest.mark.parametrize(
    ("line", "key", "reason"),
    [
        ('{"file": "good.png", ', "captions.jsonl:2", "malformed line"),
        ("[1]", "captions.jsonl:2", "expected an object"),
        ({"caption": "lost"}, "captions.jsonl:2", 'with "file"'),
        ({"file": 7, "caption": "x"}, "captions.jsonl:2", 'with "file"'),
        ({"file": "gone.png", "caption": "x"}, "gone.png", "image file gone.png: not found"),
        ({"file": "folder", "caption": "x"}, "folder", "image file folder: "),
        ({"file": "bad.png", "caption": "x"}, "bad.png", "unreadable image"),
        ({"file": "cut.png", "caption": "x"}, "cut.png", "unreadable image"),
        ({"file": "good.png"}, "good.png", "empty caption"),
        ({"file": "good.png", "caption": "  "}, "good.png", "empty caption"),
        ({"file": "good.png", "captions": []}, "good.png", "empty caption"),
        ({"file": "good.png", "caption": 7}, "good.png", "must be a text"),
        ({"file": "good.png", "captions": "x"}, "good.png", "a list of texts"),
        ({"file": "good.png", "captions": ["x", None]}, "good.png", "a list of texts"),
    ],
)
def test_bad_lines_fail_when_read_and_never_before(tmp_path, line, key, reason):
    paint(tmp_path / "good.png", 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.png").write_text("no pixels")
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    good = {"file": "good.png", "caption": "fine"}
    write_lines(tmp_path, good, line, good)
    source = FolderSource(tmp_path)
    assert len(source) == 3
    assert source.key(1) == key
    with pytest.raises(BadRecord) as caught:
        source[1]
    assert caught.value.key == key
    assert reason in caught.value.reason
    assert source[0].captions == source[2].captions == ("fine",)


def test_a_line_that_is_not_utf8(tmp_path):
    (tmp_path / "captions.jsonl").write_bytes(b'{"file": "a.png", "caption": "\xff\xfe"}\n')
    with pytest.raises(BadRecord, match=r"captions.jsonl:1: malformed line"):
        FolderSource(tmp_path)[0]


def test_blank_captions_among_good_ones_are_dropped(tmp_path):
    paint(tmp_path / "a.png", 1)
    write_lines(tmp_path, {"file": "a.png", "captions": ["", "kept", " "]})
    assert FolderSource(tmp_path)[0].captions == ("kept",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "caption file 1.txt: not found"),
        (b" \n", "empty caption"),
        (b"\xff", "caption file 1.txt is not UTF-8"),
    ],
)
def test_images_whose_text_file_is_bad(tmp_path, text, reason):
    paint(tmp_path / "1.png", 1)
    if text is not None:
        (tmp_path / "1.txt").write_bytes(text)
    with pytest.raises(BadRecord, match=f"1.png: {reason}"):
        FolderSource(tmp_path)[0]


def test_captions_are_not_needed_for_an_image_tokenizer(tmp_path):
    paint(tmp_path / "1.png", 1)
    paint(tmp_path / "2.png", 2)
    (tmp_path / "2.txt").write_text("two")
    source = FolderSource(tmp_path, require_captions=False)
    assert [source[i].captions for i in range(2)] == [(), ("two",)]


def test_folders_with_nothing_in_them_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"gone.*expected a folder of images, there is none"):
        FolderSource(tmp_path / "gone")
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(InputError, match=r"captions.jsonl .*there is none.*\.png, \.jpg"):
        FolderSource(tmp_path)
    write_lines(tmp_path, "", " ")
    with pytest.raises(InputError, match="it has no line"):
        FolderSource(tmp_path)
