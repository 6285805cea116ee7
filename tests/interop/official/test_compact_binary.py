"""The release's training file as a source: the recorded rows, small ones by hand, damage."""

import json
import re

import numpy as np
import pytest

from cogview_jax.data.records import BadRecord
from cogview_jax.interop.official.compact_binary import UNUSED, CompactBinary
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from official_rows import cut_or_padded, text_code_row


@pytest.fixture(scope="module")
def vocabulary(fixtures):
    tables = json.loads((fixtures / "tokens.json").read_text("utf-8"))
    return Vocabulary(tables["img_vocab"], tables["text_vocab"])


@pytest.fixture(scope="module")
def source(fixtures, vocabulary):
    return CompactBinary(fixtures / "compact.bin", codes=vocabulary.codes, pieces=vocabulary.text)


def test_rows_become_those_of_the_official_class(fixtures, source, vocabulary):
    table = np.load(fixtures / "datasets.npz")
    names = [name for name in table if name.startswith("text_")]
    assert names
    for name in names:
        length = int(name.removeprefix("text_"))
        assert table[name].shape == (len(source), length)
        for i in range(len(source)):
            record = source[i]
            ids = record.captions[0] + vocabulary.text_start
            tokens, valid = cut_or_padded(
                text_code_row(ids, record.codes, vocabulary), length, vocabulary
            )
            np.testing.assert_array_equal(tokens, table[name][i])
            np.testing.assert_array_equal(valid, table[f"loss_mask_{length}"][i])


def test_records_fit_the_pretraining_layout(source, vocabulary):
    layout = make_layout(LayoutConfig(), vocabulary)
    for i in range(len(source)):
        record = source[i]
        row = layout.example({"text": record.captions[0], "image": record.codes})
        assert row.image_weights.sum() == len(record.codes)


SIZES = {"text_length": 3, "image_length": 4, "codes": 10, "pieces": 5}


def write(path, rows):
    np.array(rows, "<i4").tofile(path)
    return path


def test_rows_by_hand(tmp_path):
    path = write(
        tmp_path / "a.bin",
        [[10, 14, UNUSED, 0, 9, 3, 3], [UNUSED, UNUSED, UNUSED, 1, 2, 3, 4]],
    )
    source = CompactBinary(path, **SIZES)
    assert len(source) == 2
    first, second = source[0], source[1]
    assert [ids.tolist() for ids in first.captions] == [[0, 4]]
    assert first.codes.tolist() == [0, 9, 3, 3]
    assert (first.codes.dtype, first.captions[0].dtype) == (np.int32, np.int32)
    assert [ids.tolist() for ids in second.captions] == [[]]
    assert (second.key, source.key(1)) == ("a.bin:1", "a.bin:1")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([9, 14, -1, 0, 0, 0, 0], "text ids from 9 to 14: expected 10 to 14"),
        ([10, 15, -1, 0, 0, 0, 0], "text ids from 10 to 15: expected 10 to 14"),
        ([-1, -1, -1, 0, 10, 0, 0], "image ids from 0 to 10: expected 0 to 9"),
        ([-1, -1, -1, 0, -1, 0, 0], "image ids from -1 to 0: expected 0 to 9"),
    ],
)
def test_rows_with_ids_of_no_kind_are_bad_records(tmp_path, row, reason):
    source = CompactBinary(write(tmp_path / "a.bin", [row, [-1] * 3 + [0] * 4]), **SIZES)
    with pytest.raises(BadRecord, match=re.escape(f"a.bin:0: {reason}")):
        source[0]
    assert source[1].codes.tolist() == [0] * 4


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no compact binary data set at .*missing\.bin"):
        CompactBinary(tmp_path / "missing.bin")
    for count in (0, 29):
        path = tmp_path / "a.bin"
        path.write_bytes(bytes(count))
        with pytest.raises(InputError, match=rf"a\.bin: {count} bytes, expected a multiple of 28"):
            CompactBinary(path, **SIZES)


def test_ids_of_eight_bytes_are_not_read_as_two(tmp_path):
    rows = [
        [10, 14, UNUSED, 0, 9, 3, 3],
        [UNUSED, UNUSED, UNUSED, 1, 2, 3, 4],
        [10] + [-1] * 2 + [0] * 4,
    ]
    np.array(rows, "<i8").tofile(tmp_path / "wide.bin")
    with pytest.raises(InputError, match=r"wide\.bin: its ids seem to have 8 bytes each"):
        CompactBinary(tmp_path / "wide.bin", **SIZES)
    # Without texts every half would pass for a code.
    np.array([[1, 2, 3, 4]] * 3, "<i8").tofile(tmp_path / "codes.bin")
    with pytest.raises(InputError, match=r"codes\.bin: its ids seem to have 8 bytes each"):
        CompactBinary(tmp_path / "codes.bin", **SIZES | {"text_length": 0})
