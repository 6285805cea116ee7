"""Listings of sub folders: each names files of its own folder, beside folders without one."""

import json
import os

import pytest

from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources import folder_index, folder_listing
from cogview_jax.data.sources.folder import Folder
from cogview_jax.data.sources.source import captions_of
from cogview_jax.runtime.errors import InputError
from tar_files import png


def paint(root, *names):
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))


def write_lines(path, *entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), "utf-8")


def source(root, **settings):
    return Folder(path=str(root), **settings).open()


@pytest.fixture
def root(tmp_path):
    """Three listings of three kinds, and folders without one beside and around them."""
    root = tmp_path / "root"
    paint(root, "0.png", "train/1.png", "train/deep/2.png", "test/3.png", "test-b/own/4.png")
    paint(root, "train/unlisted.png")
    (root / "0.txt").write_text("zero")
    one = {"file_name": "deep/2.png", "text": "two"}
    write_lines(root / "train" / "metadata.jsonl", one, {"file_name": "1.png", "text": "one"})
    (root / "test" / "metadata.csv").write_text('file_name,caption,text\n3.png,"thr\nee",x\n')
    write_lines(root / "test-b" / "own" / "captions.jsonl", {"file": "4.png", "captions": ["四"]})
    return root


KEYS = ["test-b/own/4.png", "test/3.png", "train/deep/2.png", "train/1.png", "0.png"]
SAID = "4 lines of 3 listings, such as test-b/own/captions.jsonl, 1 image, 1 with a caption file; "


@pytest.fixture(params=["in memory", "in indexes"])
def limit(request, monkeypatch):
    if request.param == "in indexes":
        monkeypatch.setattr(folder_index, "IN_MEMORY", 0)
        monkeypatch.setattr(folder_listing, "IN_MEMORY", 0)
    return request.param


def test_each_names_files_of_its_own_folder(root, limit):
    for _ in range(2):
        found = source(root)
        assert [found.key(i) for i in range(len(found))] == KEYS
        captions = [found[i].captions for i in range(5)]
        assert captions == [("四",), ("thr\nee",), ("two",), ("one",), ("zero",)]
        assert [captions_of(found, i) for i in range(5)] == captions
        assert [int(found[i].image[0, 0, 0]) for i in range(5)] == [4, 3, 2, 1, 0]
        said = "nothing ignored"
        if limit == "in memory":
            said = "ignored 1: 1 that their listings do not list (train/unlisted.png)"
        assert found.describe() == SAID + said


def test_a_single_one_is_named(root, limit):
    found = source(root / "test-b")
    assert found.describe() == "1 line of own/captions.jsonl; nothing ignored"
    assert found[0].key == "own/4.png"


def test_of_two_one_below_the_other_the_upper_one_is_read(root):
    (root / "train" / "deep" / "metadata.csv").write_text("file_name,text\n2.png,lower\n")
    found = source(root)
    assert [found.key(i) for i in range(len(found))] == KEYS
    assert found[2].captions == ("two",)
    assert "1 metadata.csv of sub folders (train/deep/metadata.csv)" in found.describe()
    write_lines(root / "captions.jsonl", {"file": "train/1.png", "caption": "root"})
    found = source(root)
    assert (len(found), found[0].captions) == (1, ("root",))


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("../0.png", "leads out of the folder"),
        ("{root}/train/1.png", "leads out of the folder"),
        ("link.png", r"a link leads out of the folder of train/metadata\.jsonl"),
        ("up/0.png", "a link leads out of the folder"),
    ],
)
def test_none_opens_a_file_outside_of_its_folder(root, limit, file, why):
    (root / "train" / "link.png").symlink_to(root / "0.png")
    (root / "train" / "up").symlink_to(root)
    file = file.format(root=root)
    write_lines(root / "train" / "metadata.jsonl", {"file_name": file, "text": "x"})
    found = source(root)
    with pytest.raises(BadRecord, match=why) as caught:
        found[2]
    assert caught.value.key == found.key(2) == os.path.join("train", file)


def test_columns_that_one_of_them_lacks(root, limit):
    message = r"test/metadata\.csv: no column 'full'; columns are file_name, caption, text"
    with pytest.raises(InputError, match=message):
        source(root, caption_fields=("full",))
    found = source(root, caption_fields=("text",))
    assert [found[i].captions for i in (1, 2)] == [("x",), ("two",)]
    with pytest.raises(BadRecord, match=r"test-b/own/4\.png: empty caption"):
        found[0]
    (root / "test" / "metadata.csv").write_text("file_name,label\n3.png,x\n")
    with pytest.raises(InputError, match=r"test/metadata\.csv: no column of captions"):
        source(root)


def test_a_malformed_line_has_the_path_of_its_listing(root, limit):
    with open(root / "train" / "metadata.jsonl", "a") as file:
        file.write('{"file_name": \n{"file_name": "1.png", "text": 7}\n')
    found = source(root)
    for i, key in ((4, "train/metadata.jsonl:3"), (5, "train/1.png")):
        with pytest.raises(BadRecord) as caught:
            found[i]
        assert caught.value.key == found.key(i) == key


def test_files_of_other_things_are_no_listings(root):
    write_lines(root / "more" / "captions.jsonl", {"image": "5.png", "caption": "of sample"})
    (root / "more" / "metadata.csv").write_text("name,text\n5.png,x\n")
    (root / "more" / "metadata.jsonl").symlink_to("gone")
    paint(root, "more/5.png")
    (root / "more" / "5.txt").write_text("five")
    found = source(root)
    assert (found[5].key, found[5].captions) == ("more/5.png", ("five",))
    said = found.describe()
    for name in ("captions.jsonl", "metadata.csv", "metadata.jsonl"):
        assert f"1 {name} of sub folders (more/{name})" in said


def test_a_link_into_a_folder_with_a_listing_adds_nothing(root, limit):
    (root / "a").symlink_to(root / "train" / "deep")
    found = source(root)
    assert [found.key(i) for i in range(len(found))] == KEYS
    assert "1 linked to what is there already (a)" in found.describe()


def test_a_listing_that_is_none_any_more(root, limit, capsys):
    assert len(source(root)) == 5
    write_lines(root / "train" / "metadata.jsonl", {"name": "1.png"})
    found = source(root)
    keys = ["0.png", "train/1.png", "train/deep/2.png", "train/unlisted.png"]
    assert [found.key(i) for i in range(2, len(found))] == keys
    said = capsys.readouterr().err
    assert limit == "in memory" or "train/metadata.jsonl was changed: it is made anew" in said


def test_nothing_but_empty_listings(tmp_path):
    paint(tmp_path, "a/1.png", "b/2.png")
    for name in "ab":
        (tmp_path / name / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(InputError, match=r"expected images .* and there is neither"):
        source(tmp_path)
    (tmp_path / "b" / "metadata.csv").write_text("file_name,text\n2.png,two\n")
    assert source(tmp_path)[0].captions == ("two",)
