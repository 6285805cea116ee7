"""LMDBs of tokens, written as the release's preprocessing writes them."""

import os
import pickle

import lmdb
import numpy as np
import pytest

from cogview_jax.data.records import BadRecord
from cogview_jax.interop.official.token_lmdb import TokenLmdb, is_lmdb
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.vocabulary import Vocabulary

#: Ids of the released vocabulary.
PAD, BOI1, EOI1, ROI1, TINY, BASE = 58192, 58193, 58196, 58199, 58206, 58208
CODES = [0, 8191, 5, 7]
GOOD = [ROI1, 8192, 8192 + 49_999, BASE, BOI1, *CODES, EOI1]


def write(path, rows, length=None):
    with (
        lmdb.open(str(path), map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        for i, row in enumerate(rows):
            data = row if isinstance(row, bytes) else pickle.dumps(np.array(row))
            transaction.put(str(i).encode(), data)
        transaction.put(b"length", str(len(rows) if length is None else length).encode())
    return path / "data.mdb"


def source(path, **changes):
    settings = {"image_length": 4, "vocabulary": Vocabulary(), "pieces": 50_000}
    return TokenLmdb(path, **settings | changes)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["<i8", "<i4", ">i8"])
def test_rows_are_texts_and_codes(tmp_path, protocol, kind):
    padded = [ROI1, TINY, BOI1, *CODES, EOI1, PAD, PAD]
    rows = [pickle.dumps(np.array(row, kind), protocol) for row in (GOOD, padded)]
    rows.append(pickle.dumps(np.array([GOOD], kind), protocol))
    found = source(write(tmp_path / "set.lmdb", rows))
    assert len(found) == 3
    assert found.key(1) == found[1].key == "set.lmdb:1"
    assert [found[i].codes.tolist() for i in range(3)] == [CODES] * 3
    assert [found[i].captions[0].tolist() for i in range(3)] == [[0, 49_999], [], [0, 49_999]]
    assert found[0].codes.dtype == found[0].captions[0].dtype == np.int32


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (GOOD[1:], r"9 ids: expected \[ROI1\] text \[BASE\] \[BOI1\] 4 codes \[EOI1\]"),
        (GOOD[:-1], "9 ids: expected"),
        ([*GOOD, BOI1], "11 ids: expected"),
        ([ROI1, 8192, BOI1, *CODES, EOI1], "8 ids: expected"),
        ([BOI1], "1 ids: expected"),
        ([], "numbers of type 'f8', expected"),
        ([ROI1, 8191, BASE, BOI1, *CODES, EOI1], "text ids from 8191 to 8191: expected 8192 to"),
        ([ROI1, BASE, BOI1, 1, 2, 8192, 3, EOI1], "image ids from 1 to 8192: expected 0 to 8191"),
        (np.array(GOOD, float), "its pickle has numbers of type 'f8', expected i2"),
        (pickle.dumps(GOOD), "its pickle holds no numpy array"),
        (pickle.dumps(("text", np.array(CODES))), "its pickle holds no numpy array"),
        (pickle.dumps(np.array(GOOD))[:-9], "its pickle"),
        (b"no pickle", "its pickle"),
        (b"", "its pickle"),
    ],
)
def test_other_rows_are_bad_records(tmp_path, row, why):
    found = source(write(tmp_path / "set.lmdb", [row, GOOD]))
    with pytest.raises(BadRecord, match=rf"^set\.lmdb:0: .*{why}"):
        found[0]
    assert found[1].codes.tolist() == CODES


def test_nothing_of_a_row_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    found = source(write(tmp_path / "set.lmdb", [pickle.dumps(Trap())]))
    with pytest.raises(BadRecord, match=r"its pickle asks for posix.mkdir"):
        found[0]
    assert not (tmp_path / "trap").exists()


def test_lmdbs_that_are_not_rows(tmp_path):
    path = write(tmp_path / "set.lmdb", [], length="many")
    assert is_lmdb(path)
    with pytest.raises(InputError, match="expected rows of tokens with the keys 0, 1, 2"):
        source(path)
    for length in ("9" * 20, "9" * 5000, "5"):  # more than a length can be, or than there are keys
        many = write(tmp_path / f"many{length[:24]}", [GOOD], length=length)
        with pytest.raises(InputError, match=f"it has 2 keys, and length is '{length[:18]}'"):
            source(many)
    found = source(write(tmp_path / "short", [GOOD], length=2))
    with pytest.raises(BadRecord, match="short:1: there is no such row"):
        found[1]
    (tmp_path / "rows.bin").write_bytes(b"\xde\xc0" * 100)
    assert not is_lmdb(tmp_path / "rows.bin")


def test_without_the_package_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    path = write(tmp_path / "set.lmdb", [GOOD])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is an LMDB: install .*cogview-jax\[lmdb\]"):
        source(path)
