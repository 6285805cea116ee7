"""Token records as bytes: round trips, their size, and what is refused."""

import struct

import numpy as np
import pytest

from cogview_jax.data.token_records import RecordLocation, TokenRecord, decode_record, encode_record
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


@pytest.mark.parametrize("width", [0, 1, 3, 8, 16])
def test_ids_of_another_width_are_refused(width):
    """Ids of 8 bytes would be cut to 4."""
    ids = np.array([5, 2**32 + 6], "<i8").tobytes()
    data = struct.pack("<HHIII", 1, width, 0, 0, 2) + ids[: 2 * width]
    with pytest.raises(InputError, match=f"ids of {width} bytes: expected 2 or 4"):
        decode_record(data)


def test_ids_above_31_bits_are_refused():
    data = struct.pack("<HHIII I", 1, 4, 0, 0, 1, 2**31)
    with pytest.raises(InputError, match="id 2147483648: ids are below 2147483648"):
        decode_record(data)


def test_a_key_that_is_no_text_is_refused():
    with pytest.raises(InputError, match="key is no UTF-8"):
        decode_record(struct.pack("<HHIII c", 1, 2, 1, 0, 0, b"\xff"))


def test_a_record_knows_its_place():
    place = RecordLocation(b"01234567", 3, 9)
    data = encode_record(CASES["plain"], place)
    assert decode_record(data, place).key == CASES["plain"].key
    for other in (
        place._replace(shard=4),
        place._replace(number=8),
        place._replace(store=b"7" * 8),
    ):
        with pytest.raises(InputError, match=r"shard 3, number 9.*exchanged"):
            decode_record(data, other)
    for length in range(len(data)):
        with pytest.raises(InputError):
            decode_record(data[:length], place)
    with pytest.raises(InputError, match="format 1: expected format 257"):
        decode_record(encode_record(CASES["plain"]), place)
