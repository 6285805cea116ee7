"""Token records as bytes: round trips, their size, and what is refused."""

import struct

import numpy as np
import pytest

from cogview_jax.data.token_records import TokenRecord, decode_record, encode_record
from cogview_jax.runtime.errors import InputError


def record(key, captions, codes) -> TokenRecord:
    return TokenRecord(key, tuple(np.array(c, np.int32) for c in captions), np.array(codes))


CASES = {
    "plain": record("a/1.png", [[5, 6, 7], [8]], [1, 2, 3, 8191]),
    "wide ids": record("图", [[58_191, 65_536]], [0, 2**31 - 1]),
    "no caption": record("x", [], [4, 4]),
    "empty caption": record("x", [[], [1], []], [4]),
    "no codes": record("", [[9]], []),
    "nothing": record("", [], []),
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name):
    before = CASES[name]
    after = decode_record(encode_record(before))
    assert after.key == before.key
    assert len(after.captions) == len(before.captions)
    for one, two in zip(after.captions, before.captions, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.dtype == np.int32
    np.testing.assert_array_equal(after.codes, before.codes)
    assert after.codes.dtype == np.int32


def test_the_bytes_are_the_documented_ones():
    data = encode_record(record("k", [[7, 8]], [9]))
    assert data == struct.pack("<HHIII I HHH c", 1, 2, 1, 1, 1, 2, 7, 8, 9, b"k")


def test_ids_take_two_bytes_while_they_fit():
    codes = np.arange(1024)
    assert len(encode_record(record("k", [range(20)], codes))) < 2 * 1044 + 32
    assert len(encode_record(record("k", [[70_000]], codes))) > 4 * 1025


def test_every_truncation_is_noticed():
    data = encode_record(CASES["plain"])
    for length in range(len(data)):
        with pytest.raises(InputError, match=f"token record of {length} bytes"):
            decode_record(data[:length])


def test_another_format_is_refused():
    data = encode_record(CASES["plain"])
    with pytest.raises(InputError, match="format 2: expected format 1"):
        decode_record(b"\x02" + data[1:])
