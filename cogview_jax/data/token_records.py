"""One tokenized pair, and the bytes it is kept as."""

import dataclasses
import struct
from typing import NamedTuple

import numpy as np

from cogview_jax.runtime.errors import InputError

FORMAT = 1
# Format, bytes an id (2 or 4), bytes of the key, number of captions, number of codes.
_HEADER = struct.Struct("<HHIII")
# Added to the format of a record that says where it belongs.
_PLACED = 0x100
_PLACE = struct.Struct("<8sII")


class RecordLocation(NamedTuple):
    """Where a record belongs, so that shards which were exchanged are noticed.

    store: 8 bytes that stand for the store. shard: the number of its file, from 0. number: its
    number in that file, from 0.
    """

    store: bytes
    shard: int
    number: int


@dataclasses.dataclass(frozen=True)
class TokenRecord:
    """A captioned image as ids.

    Attributes:
        key: the name of the record it was made from.
        captions: the text ids of each caption, int32 [length].
        codes: the image codes row by row, int32 [n].
    """

    key: str
    captions: tuple[np.ndarray, ...]
    codes: np.ndarray


def encode_record(record: TokenRecord, place: RecordLocation | None = None) -> bytes:
    """The record as bytes, little-endian, ids in 2 bytes each if all are below 65,536, else in 4.

    header | length of each caption (uint32) | ids of all captions, then codes | key (UTF-8)
    | place, if one is given

    1,024 codes and a caption are about 2 kB.
    """
    key = record.key.encode()
    lengths = np.array([len(ids) for ids in record.captions], "<u4")
    ids = np.concatenate([*record.captions, record.codes]).astype(np.int64)
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < 2**31), "ids are 31-bit"
    width = 2 if ids.size == 0 or ids.max() < 2**16 else 4
    version = FORMAT if place is None else FORMAT | _PLACED
    header = _HEADER.pack(version, width, len(key), len(lengths), len(record.codes))
    behind = b"" if place is None else _PLACE.pack(*place)
    return header + lengths.tobytes() + ids.astype(f"<u{width}").tobytes() + key + behind


def decode_record(data: bytes, place: RecordLocation | None = None) -> TokenRecord:
    """The inverse of `encode_record`.

    Args:
        data: the bytes.
        place: where the record was found; None for one that says nothing of its place.

    Raises:
        InputError: another format, not as many bytes as the header announces, ids that are none,
            or a record that belongs to another place.
    """
    if len(data) < _HEADER.size:
        raise InputError(f"token record of {len(data)} bytes: expected at least {_HEADER.size}")
    version, width, key_bytes, captions, codes = _HEADER.unpack_from(data)
    expected = FORMAT if place is None else FORMAT | _PLACED
    if version != expected:
        raise InputError(f"token record of format {version}: expected format {expected}")
    if width not in (2, 4):
        raise InputError(f"token record with ids of {width} bytes: expected 2 or 4")
    start = _HEADER.size + 4 * captions
    if len(data) < start:
        raise InputError(f"token record of {len(data)} bytes: expected at least {start}")
    lengths = np.frombuffer(data, "<u4", captions, _HEADER.size).astype(np.int64)
    count = int(lengths.sum()) + codes
    key_at = start + width * count
    end = key_at + key_bytes
    whole = end if place is None else end + _PLACE.size
    if len(data) != whole:
        raise InputError(f"token record of {len(data)} bytes: expected {whole}")
    if place is not None and (own := RecordLocation(*_PLACE.unpack_from(data, end))) != place:
        raise InputError(
            f"token record of shard {own.shard}, number {own.number}"
            + " of another store" * (own.store != place.store)
            + f": expected shard {place.shard}, number {place.number}: files were exchanged"
        )
    ids = np.frombuffer(data, f"<u{width}", count, start)
    if ids.size and ids.max() >= 2**31:
        raise InputError(f"token record with id {ids.max()}: ids are below {2**31}")
    *texts, image = np.split(ids.astype(np.int32), np.cumsum(lengths))
    try:
        key = data[key_at:end].decode()
    except UnicodeDecodeError:
        raise InputError("token record whose key is no UTF-8") from None
    return TokenRecord(key, tuple(texts), image)
