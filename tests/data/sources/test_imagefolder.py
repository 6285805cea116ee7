"""Folders as Hugging Face's imagefolder has them: metadata.jsonl and metadata.csv."""

import csv

import pytest

from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources import folder_listing
from cogview_jax.data.sources.folder import Folder
from cogview_jax.data.sources.source import captions_of
from cogview_jax.runtime.errors import InputError
from tar_files import png

ROWS = [
    ("a/1.png", "one"),
    ("2.png", 'with "marks", a comma\nand a line'),
    ("2.png", "again\r\n图"),
    ("gone.png", "gone"),
    ("../2.png", "elsewhere"),
    ("2.png", ""),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png(1))
    for value in (2, 3):
        (tmp_path / f"{value}.png").write_bytes(png(value))
    return tmp_path


def source(folder, **settings):
    return Folder(path=str(folder), **settings).open()


def write_csv(folder, rows, columns=("file_name", "text"), encoding="utf-8"):
    with open(folder / "metadata.csv", "w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_are_those_that_csv_reads(folder, monkeypatch, in_memory, encoding):
    if not in_memory:
        monkeypatch.setattr(folder_listing, "IN_MEMORY", 0)
    write_csv(folder, ROWS, encoding=encoding)
    found = source(folder)
    assert len(found) == len(ROWS)
    assert [found[i].captions for i in range(3)] == [(text,) for _, text in ROWS[:3]]
    assert captions_of(found, 1) == found[1].captions
    assert [found[i].image[0, 0, 0] for i in range(3)] == [1, 2, 2]
    assert found.key(3) == "gone.png"
    for i, message in (
        (3, "not found"),
        (4, '"file_name" leads out of the folder'),
        (5, "empty cap"),
    ):
        with pytest.raises(BadRecord, match=message):
            found[i]
    said = "6 lines of metadata.csv"
    if in_memory:
        said += "; ignored 1: 1 that metadata.csv does not list (3.png)"
    assert found.describe() == said


def test_malformed_rows_cost_no_other(folder):
    data = b"file_name,text\n2.png,two\n2.png\n"
    data += b'2.png,"clo"sed\n\xff,x\n3.png,three\n3.png,"open\n2.png,'
    (folder / "metadata.csv").write_bytes(data)
    found = source(folder)
    outcomes = []
    for i in range(len(found)):
        try:
            outcomes.append(found[i].captions)
        except BadRecord as error:
            outcomes.append(error.key)
    # A mark that is never closed takes the rest, as it does for csv.
    bad = [f"metadata.csv:{n}" for n in (3, 4, 5, 7)]
    assert outcomes == [("two",), *bad[:3], ("three",), bad[3]]


def test_columns_that_are_named(folder):
    write_csv(folder, [("2.png", "short", "long")], ("file_name", "caption", "full"))
    assert source(folder)[0].captions == ("short",)
    assert source(folder, caption_fields=("full", "caption"))[0].captions == ("long", "short")
    write_csv(folder, [("2.png", "one")], ("file_name", "captions"))
    assert source(folder)[0].captions == ("one",)


@pytest.mark.parametrize(
    ("line", "captions"),
    [
        ('{"file_name": "2.png", "text": "two"}', ("two",)),
        ('{"file_name": "2.png", "caption": "two", "text": "other"}', ("two",)),
        ('{"file_name": "2.png", "captions": ["two", "三"]}', ("two", "三")),
        ('{"file_name": "2.png", "text": ["two", "三"]}', ("two", "三")),
        ('{"file_name": "2.png", "captions": "two"}', ("two",)),
        ('{"file_name": "2.png", "captions": [["two", ["三"]], [], "3"]}', ("two", "三", "3")),
        ('{"file_name": "2.png", "captions": null, "text": "two"}', ("two",)),
        ('{"file_name": "2.png", "captions": ' + "[" * 900 + '"two"' + "]" * 900 + "}", ("two",)),
        ('{"file_name": "2.png", "text": null}', None),
        ('{"file_name": "2.png", "text": "two"}\n[]', ("two",)),
    ],
)
def test_lines_of_json(folder, line, captions):
    (folder / "metadata.jsonl").write_text(line)
    found = source(folder)
    if captions is None:
        with pytest.raises(BadRecord, match="empty caption"):
            found[0]
    else:
        assert found[0].captions == captions


def test_which_listing_counts(folder):
    write_csv(folder, [("2.png", "csv")])
    assert source(folder)[0].captions == ("csv",)
    (folder / "metadata.jsonl").write_text('{"file_name": "2.png", "text": "json"}')
    assert source(folder)[0].captions == ("json",)
    (folder / "captions.jsonl").write_text('{"file": "2.png", "caption": "own"}')
    assert source(folder)[0].captions == ("own",)


def test_a_table_of_something_else_is_no_listing(folder):
    write_csv(folder, [("2.png", "x")], ("name", "text"))
    message = r"3 images and no caption: .*; ignored 1: 1 of ending .csv \(metadata.csv\)"
    with pytest.raises(InputError, match=message):
        source(folder)


def test_columns_that_are_not_there(folder):
    with pytest.raises(InputError, match=r"caption_fields full are those of a listing: expected"):
        source(folder, caption_fields=("full",))
    write_csv(folder, [("2.png", "cat")], ("file_name", "label"))
    with pytest.raises(
        InputError, match=r"metadata.csv: no column 'full'; columns are file_name, l"
    ):
        source(folder, caption_fields=("full",))
    message = (
        "no column of captions, as captions, caption, .*caption_fields; columns are file_name, l"
    )
    with pytest.raises(InputError, match=message):
        source(folder)
    assert source(folder, require_captions=False)[0].captions == ()
    write_csv(folder, [])
    with pytest.raises(InputError, match=r"expected metadata.csv with a line an image, it has no"):
        source(folder)
