"""Long listings, whose lines are found through an index: the same records as of short ones."""

import json
import os

import pytest
from PIL import Image

from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources import folder_listing
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.data.sources.source import captions_of
from cogview_jax.runtime.errors import InputError

#: Ends of lines of all kinds, empty lines, lines that are malformed, and a byte order mark.
LISTING = (
    b"\xef\xbb\xbf"
    b'{"file": "1.png", "caption": "one"}\r\n'
    b"\r"
    b' {"file": "2.png", "captions": ["two", "\xe4\xba\x8c"]} \r'
    b"no JSON\n"
    b"  \n\n"
    b'{"file": "gone.png", "caption": "gone"}\n'
    b"\xff\n"
    b'{"file": "1.png", "caption": "again\xe2\x80\xa8on one line"}'
)


@pytest.fixture
def folder(tmp_path):
    for value in (1, 2):
        Image.new("RGB", (4, 3), (value, 0, 0)).save(tmp_path / f"{value}.png")
    (tmp_path / "captions.jsonl").write_bytes(LISTING)
    return tmp_path


def outcome(source, i):
    try:
        record = source[i]
    except BadRecord as error:
        return source.key(i), error.key, error.reason
    return source.key(i), record.key, record.captions, captions_of(source, i), record.image.sum()


@pytest.mark.parametrize("listing", [LISTING, LISTING[3:], LISTING + b"\n", LISTING + b"\r\r\n"])
def test_long_listings_have_the_records_of_short_ones(folder, monkeypatch, listing):
    (folder / "captions.jsonl").write_bytes(listing)
    short = FolderSource(folder)
    monkeypatch.setattr(folder_listing, "IN_MEMORY", 0)
    long = FolderSource(folder)
    assert len(long) == len(short) == 6
    assert [outcome(long, i) for i in range(6)] == [outcome(short, i) for i in range(6)]
    assert outcome(long, 2)[1] == "captions.jsonl:4"
    assert outcome(long, 5)[3] == ("again\u2028on one line",)
    assert long.describe() == "6 lines of captions.jsonl"


def test_a_long_listing_that_was_changed_is_read_anew(folder, monkeypatch, capsys):
    monkeypatch.setattr(folder_listing, "IN_MEMORY", 0)
    before = FolderSource(folder)
    (folder / "captions.jsonl").write_text(json.dumps({"file": "2.png", "caption": "new"}))
    with pytest.raises(InputError, match=r"captions\.jsonl: changed while it was read"):
        before[0]
    capsys.readouterr()
    source = FolderSource(folder)
    assert (len(source), source[0].captions) == (1, ("new",))
    assert "captions.jsonl was changed: it is made anew" in capsys.readouterr().err


def test_short_listings_leave_no_index(folder):
    FolderSource(folder)
    assert sorted(os.listdir(folder)) == ["1.png", "2.png", "captions.jsonl"]


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_listing_without_a_line(folder, monkeypatch, limit):
    monkeypatch.setattr(folder_listing, "IN_MEMORY", limit)
    (folder / "captions.jsonl").write_text("\n \r\n")
    with pytest.raises(InputError, match="with a line an image, it has no line"):
        FolderSource(folder)
