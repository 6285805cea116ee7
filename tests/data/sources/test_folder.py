"""Folders in both forms, and every way a record in one can be bad."""

import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

from cogview_jax.data.records import BadRecord
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError, SystemFault


def paint(path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value, 0, 0)).save(path)


def write_lines(folder, *lines) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "captions.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def test_a_line_ends_where_lines_of_files_end(tmp_path):
    within = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    paint(tmp_path / "1.png", 0)
    (tmp_path / "1.txt").write_bytes(f"\ufeff{within}\r\ntwo\rthree\nfour".encode())
    assert FolderSource(tmp_path)[0].captions == (within, "two", "three", "four")
    line = json.dumps({"file": "1.png", "caption": within}, ensure_ascii=False)
    (tmp_path / "captions.jsonl").write_bytes(f"\ufeff{line}\r\n\r{line}".encode())
    source = FolderSource(tmp_path)
    assert [source[i].captions for i in range(len(source))] == [(within,), (within,)]


def test_images_with_text_files_recursive_and_sorted(tmp_path):
    for value, name in enumerate(["b/2.JPG", "b/10.png", "a.webp", "c.bmp", "b/c/1.jpeg"]):
        paint(tmp_path / name, value)
        (tmp_path / name).with_suffix(".txt").write_text(f"an image of {name}\n", "utf-8")
    (tmp_path / "._a.webp").write_bytes(b"not an image")
    (tmp_path / "notes.md").write_text("not an image either")
    source = FolderSource(tmp_path)
    keys = ["a.webp", "b/10.png", "b/2.JPG", "b/c/1.jpeg", "c.bmp"]
    assert [source.key(i) for i in range(len(source))] == keys
    for i, key in enumerate(keys):
        record = source[i]
        assert (record.key, record.captions) == (key, (f"an image of {key}",))
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
        ({"file": "good.png", "caption": "\ud800"}, "good.png", "caption is no Unicode text"),
        ({"file": "good\ud800.png", "caption": "x"}, "captions.jsonl:2", "is no name of a file"),
        ({"file": "good\0.png", "caption": "x"}, "captions.jsonl:2", "is no name of a file"),
        ('{"file": "good.png", "x": ' + "[" * 99_999, "captions.jsonl:2", "nested too deeply"),
        ('{"file": "good.png", "x": ' + "9" * 9999 + "}", "captions.jsonl:2", "malformed line"),
        ({"file": "good.png", "caption": "x" * 2**20}, "captions.jsonl:2", "expected at most"),
        ({"file": "/etc/passwd", "caption": "x"}, "/etc/passwd", "leads out of the folder"),
        ({"file": "../good.png", "caption": "x"}, "../good.png", "leads out of the folder"),
        ({"file": "folder/../../a", "caption": "x"}, "folder/../../a", "leads out of the folder"),
        ({"file": "link.png", "caption": "x"}, "link.png", "a link leads out of the folder"),
        ({"file": "out/outside.png", "caption": "x"}, "out/outside.png", "a link leads out of"),
        ({"file": "pipe.png", "caption": "x"}, "pipe.png", "image file pipe.png: expected a file"),
        ({"file": "circle.png", "caption": "x"}, "circle.png", "symbolic links"),
        ({"file": "good.png", "captions": {"x": 1}}, "good.png", "a list of texts"),
        ({"file": "good.png", "captions": ["x", None]}, "good.png", "a list of texts"),
    ],
)
def test_bad_lines_fail_when_read_and_never_before(tmp_path, line, key, reason):
    outside, tmp_path = tmp_path, tmp_path / "inside"
    paint(outside / "outside.png", 2)
    paint(tmp_path / "good.png", 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.png").write_text("no pixels")
    (tmp_path / "link.png").symlink_to(outside / "outside.png")
    (tmp_path / "out").symlink_to(outside)
    (tmp_path / "circle.png").symlink_to("circle.png")
    os.mkfifo(tmp_path / "pipe.png")
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
    SkippedLog(outside).add(caught.value.key, caught.value.reason)
    assert source[0].captions == source[2].captions == ("fine",)


def test_a_link_within_the_folder_is_followed(tmp_path):
    paint(tmp_path / "real/1.png", 7)
    (tmp_path / "link").symlink_to("real")
    write_lines(tmp_path, {"file": "link/1.png", "caption": "x"})
    (tmp_path.parent / "whole").symlink_to(tmp_path)
    for root in (tmp_path, tmp_path.parent / "whole"):
        assert int(FolderSource(root)[0].image[0, 0, 0]) == 7
    (tmp_path.parent / "whole").unlink()


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
    paint(tmp_path / "2.png", 2)
    (tmp_path / "2.txt").write_text("two")
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
    with pytest.raises(
        InputError, match=r"expected images \(\.png, \.jpg.*captions.jsonl.*\(notes\.md"
    ):
        FolderSource(tmp_path)
    write_lines(tmp_path, "", " ")
    with pytest.raises(InputError, match="it has no line"):
        FolderSource(tmp_path)


def test_no_caption_anywhere_says_where_they_are_looked_for(tmp_path):
    paint(tmp_path / "000.png", 1)
    (tmp_path / "metadata.jsonl").write_text('{"name": "000.png", "text": "x"}')
    message = r"1 image and no caption: .*captions\.jsonl.*NAME\.txt.*\(metadata\.jsonl\)$"
    with pytest.raises(InputError, match=message):
        FolderSource(tmp_path)
    assert len(FolderSource(tmp_path, require_captions=False)) == 1


def test_a_listing_that_is_no_file_is_refused(tmp_path):
    paint(tmp_path / "1.png", 1)
    os.mkfifo(tmp_path / "captions.jsonl")
    with pytest.raises(InputError, match=r"captions\.jsonl: expected a file, but this is a pipe"):
        FolderSource(tmp_path)
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "captions.jsonl").symlink_to("gone")
    with pytest.raises(InputError, match=r"captions\.jsonl: No such file"):
        FolderSource(tmp_path)


def test_a_pipe_among_the_images_or_captions_is_a_bad_record(tmp_path):
    for name in ("1", "2"):
        paint(tmp_path / f"{name}.png", 1)
        (tmp_path / f"{name}.txt").write_text("a caption")
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    (tmp_path / "2.txt").unlink()
    os.mkfifo(tmp_path / "2.txt")
    source = FolderSource(tmp_path)
    with pytest.raises(BadRecord, match=r"1\.png: image file 1\.png: .* this is a pipe"):
        source[0]
    with pytest.raises(BadRecord, match=r"2\.png: caption file 2\.txt: .* this is a pipe"):
        source[1]


def test_names_that_are_no_utf8_are_bad_records_that_can_be_written_down(tmp_path):
    paint(tmp_path / "a.png", 1)
    (tmp_path / "a.txt").write_text("a")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    paint(tmp_path / "a.png", 1)
    source = FolderSource(tmp_path)
    assert [source.key(i) for i in range(2)] == ["a.png", "\\udcff.png"]
    with pytest.raises(BadRecord, match="not UTF-8") as caught:
        source[1]
    SkippedLog(tmp_path / "log").add(caught.value.key, caught.value.reason)
    written = (tmp_path / "log" / "skipped.jsonl").read_text("utf-8")
    assert json.loads(written)["key"] == "\\udcff.png"


@pytest.fixture
def failing(monkeypatch):
    """Opening a file fails so many times with an error, after which it works."""
    monkeypatch.setattr(faults, "PAUSES", (0.0, 0.0))
    real = os.open

    def fail(name: str, number: int, times: int):
        left = [times]

        def opened(path, *arguments, **options):
            if str(path).endswith(name) and left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number), path)
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, "open", opened)

    return fail


FAULTS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("name", ["1.png", "1.txt"])
def test_faults_that_pass_are_waited_out_and_others_are_no_bad_record(
    tmp_path, failing, name, number
):
    paint(tmp_path / "1.png", 3)
    (tmp_path / "1.txt").write_text("three")
    source = FolderSource(tmp_path)
    failing(name, number, 2)
    record = source[0]
    assert (record.captions, int(record.image[0, 0, 0])) == (("three",), 3)
    failing(name, number, 3)
    with pytest.raises(SystemFault, match=rf"{name}: {os.strerror(number)} \(3 tries\)"):
        source[0]


def test_a_listing_on_a_failing_disk_is_no_bad_input(tmp_path, failing):
    paint(tmp_path / "1.png", 3)
    write_lines(tmp_path, {"file": "1.png", "caption": "x"})
    failing("captions.jsonl", errno.EIO, 2)
    assert len(FolderSource(tmp_path)) == 1
    failing("captions.jsonl", errno.EIO, 3)
    with pytest.raises(SystemFault, match="Input/output error"):
        FolderSource(tmp_path)


def test_an_image_that_may_not_be_read_is_a_bad_record(tmp_path, failing):
    paint(tmp_path / "1.png", 3)
    source = FolderSource(tmp_path, require_captions=False)
    failing("1.png", errno.EACCES, 1)
    with pytest.raises(BadRecord, match=r"image file 1\.png: Permission denied"):
        source[0]
