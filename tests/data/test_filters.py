"""Filters leave records out by what was asked for, count them apart, and change nothing unset."""

import collections
import hashlib
import json

import numpy as np
import pytest

from cogview_jax.data.filters import FilterConfig, filtered
from cogview_jax.data.loader import batches
from cogview_jax.data.records import BadRecord, FilteredRecord, Record
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.source import captions_of, listing
from cogview_jax.data.token_shards import TokenShards
from cogview_jax.data.token_store import TokenStore
from cogview_jax.data.token_writer import ShardWriter, write_store
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError

#: Rows, columns and captions of records; 6 cannot be read.
RECORDS = (
    (8, 8, ("a red circle",)),
    (8, 7, ("a red circle",)),
    (8, 24, ("a red circle",)),
    (25, 8, ("a red circle",)),
    (9, 9, ("red", "a very large red circle")),
    (9, 9, ("red",)),
    None,
    (9, 9, ()),
)


class Sized:
    """Images of given sizes with given captions."""

    def __init__(self, records=RECORDS):
        self.records = records

    def __len__(self):
        return len(self.records)

    def key(self, i):
        return f"{i}.png"

    def __getitem__(self, i):
        if self.records[i] is None:
            raise BadRecord(self.key(i), "broken")
        rows, columns, captions = self.records[i]
        return Record(self.key(i), np.full((rows, columns, 3), i % 256, np.uint8), captions)


def outcomes(source):
    """For each record its captions, or the error that reading it raises."""
    found = []
    for i in range(len(source)):
        try:
            found.append(source[i].captions)
        except BadRecord as error:
            found.append(error)
    return found


def left_out(**settings):
    """The reasons of the records that a filter leaves out, by their numbers."""
    found = outcomes(filtered(Sized(), FilterConfig(**settings)))
    errors = {i: error for i, error in enumerate(found) if isinstance(error, FilteredRecord)}
    assert not isinstance(found[6], FilteredRecord), "it is broken, whatever is asked for"
    return {i: error.reason for i, error in errors.items()}


def test_without_a_filter_the_source_is_itself():
    source = Sized()
    assert filtered(source, FilterConfig()) is source
    assert FilterConfig().plan() == {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"min_side": 8}, {1: "shorter side of 7 pixels, below 8 (min_side)"}),
        ({"max_aspect": 3}, {3: "sides of 25 and 8 pixels, more than 3 : 1 (max_aspect)"}),
        ({"max_aspect": 1.5}, {2: None, 3: None}),
        ({"min_caption": 4}, {5: "caption of 3 characters, below 4 (min_caption)"}),
        (
            {"max_caption": 4},
            {
                **dict.fromkeys(range(4), "caption of 12 characters, above 4 (max_caption)"),
            },
        ),
    ],
)
def test_each_filter_says_whom_it_leaves_out(settings, expected):
    found = left_out(**settings)
    assert found.keys() == expected.keys()
    for i, reason in expected.items():
        assert reason in (None, found[i])


def test_captions_of_another_length_are_left_out_of_a_record_that_has_others():
    short = filtered(Sized(), FilterConfig(min_caption=4))
    assert short[4].captions == ("a very large red circle",)
    long = filtered(Sized(), FilterConfig(max_caption=4))
    assert long[4].captions == ("red",)
    assert long[7].captions == (), "a record without captions is not about captions"


def test_named_records_are_left_out_unread(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("6.png\n\n0.png\nnobody.png\n", encoding="utf-8")
    source = filtered(Sized(), FilterConfig(exclude=str(names)))
    found = outcomes(source)
    assert [i for i, x in enumerate(found) if isinstance(x, FilteredRecord)] == [0, 6]
    assert found[0].reason == f"named in {names} (exclude)"
    assert source.describe() == f"8 records; filtered by exclude = {names}"
    assert listing(source) == listing(Sized())


def test_a_plan_names_what_is_set_and_the_content_of_the_file(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("a\n")
    other.write_text("a\n")
    digest = hashlib.sha256(b"a\n").hexdigest()
    plans = [FilterConfig(min_side=9, exclude=str(file)).plan() for file in (one, other)]
    assert plans == [{"min_side": 9, "exclude": digest}] * 2
    other.write_text("b\n")
    assert FilterConfig(min_side=9, exclude=str(other)).plan() != plans[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_aspect": 0.5}, "max_aspect = 0.5: expected 0 for any, or at least 1"),
        ({"min_caption": 9, "max_caption": 3}, "max_caption = 3: .* at least min_caption = 9"),
        ({"min_side": -1}, "min_side = -1: expected 0 to 1048576"),
    ],
)
def test_filters_that_leave_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build(FilterConfig, settings)


def test_files_that_name_nobody_are_refused_by_their_setting(tmp_path):
    with pytest.raises(InputError, match=r"data\.filter\.exclude = .*gone.txt.*No such file"):
        filtered(Sized(), FilterConfig(exclude=str(tmp_path / "gone.txt")))
    (tmp_path / "bytes.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(InputError, match=r"data\.filter\.exclude = .*line 2 is no UTF-8"):
        filtered(Sized(), FilterConfig(exclude=str(tmp_path / "bytes.txt")))


class Encoder:
    def fit(self, record):
        return record.image[:1, :1, 0].reshape(-1)

    def encode(self, items):
        return [([np.array([1])], item) for item in items]


def store(folder, source, max_skipped=0.05):
    shards = TokenShards(folder / "store", plan={}, records=len(source), shard_size=3)
    writer = ShardWriter(shards, source, Encoder(), batch_size=2, max_skipped=max_skipped)
    write_store(shards, writer, {})
    return writer.counts


def test_filtered_records_are_listed_and_no_damage(tmp_path):
    """Of the eight records four are left out, and one of them cannot be read."""
    source = filtered(Sized(), FilterConfig(min_side=9))
    counts = store(tmp_path, source, max_skipped=0.2)
    assert (counts.met, counts.skipped, counts.filtered) == (8, 1, 4)
    assert [TokenStore(tmp_path / "store")[i].key for i in range(3)] == ["4.png", "5.png", "7.png"]
    listed = (tmp_path / "store" / "skipped.jsonl").read_text()
    lines = [json.loads(line) for line in listed.splitlines()]
    assert [line["key"] for line in lines] == [f"{i}.png" for i in (0, 1, 2, 3, 6)]
    # What an earlier run has written of a store is counted alike.
    (tmp_path / "store" / "manifest.json").unlink()
    (tmp_path / "store" / "tokens-00002.json").unlink()
    counts = store(tmp_path, source, max_skipped=0.2)
    assert (counts.met, counts.skipped, counts.filtered) == (8, 1, 4)


def test_a_filter_that_leaves_out_everything_is_an_error(tmp_path):
    source = filtered(Sized(RECORDS[:4]), FilterConfig(min_side=100))
    with pytest.raises(InputError, match=r"data\.filter leaves out all 4 records"):
        store(tmp_path, source)


def test_training_reads_others_evenly_in_the_place_of_filtered_ones(tmp_path):
    """250 small images in a row: no image behind them comes 250 times as often."""
    sizes = [(2, 2, ("x",))] * 250 + [(4, 4, ("x",))] * 50
    source = filtered(Sized(sizes), FilterConfig(min_side=3))

    def numbers(folder):
        log = SkippedLog(tmp_path / folder, max_skipped=0.0)
        stream = batches(
            source,
            global_batch=30,
            seed=1,
            transform=lambda record, _: np.int32(record.key.removesuffix(".png")),
            skipped=log,
        )
        found = [next(stream) for _ in range(10)]
        stream.close()
        assert log.skipped == 0
        return np.concatenate(found).tolist()

    found = numbers("one")
    counts = collections.Counter(found)
    assert min(counts) >= 250
    assert len(counts) == 50, "each of them is its own at least"
    assert max(counts.values()) < 25, "six on average"
    assert numbers("two") == found


@pytest.mark.parametrize(
    "settings", [{"min_caption": 4}, {"max_caption": 4}, {"min_side": 8}, {"max_aspect": 3}]
)
def test_captions_alone_are_those_of_the_whole_record(settings):
    source = filtered(Sized(), FilterConfig(**settings))
    compared = 0
    for i, outcome in enumerate(outcomes(source)):
        if isinstance(outcome, BadRecord):
            continue
        assert captions_of(source, i) == outcome
        compared += 1
    assert compared


def test_captions_of_records_that_are_left_out_are_not_read(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("0.png\n", encoding="utf-8")
    for settings, i in (
        ({"exclude": str(names)}, 0),
        ({"min_caption": 4}, 5),
        ({"min_side": 8}, 1),
    ):
        with pytest.raises(FilteredRecord):
            captions_of(filtered(Sized(), FilterConfig(**settings)), i)
