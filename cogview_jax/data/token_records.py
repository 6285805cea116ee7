"""One tokenized pair, and the bytes it is kept as."""

import dataclasses
import struct

import numpy as np

from cogview_jax.runtime.errors import InputError

FORMAT = 1
# Format, bytes an id (2 or 4), bytes of the key, number of captions, number of codes.
_HEADER = struct.Struct("<HHIII")


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


def encode_record(record: TokenRecord) -> bytes:
    """The record as bytes, little-endian, ids in 2 bytes each if all are below 65,536, else in 4.

    header | length of each caption (uint32) | ids of all captions, then codes | key (UTF-8)

    1,024 codes and a caption are about 2 kB.
    """
    key = record.key.encode()
    lengths = np.array([len(ids) for ids in record.captions], "<u4")
    ids = np.concatenate([*record.captions, record.codes]).astype(np.int64)
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < 2**31), "ids are 31-bit"
    width = 2 if ids.size == 0 or ids.max() < 2**16 else 4
    header = _HEADER.pack(FORMAT, width, len(key), len(lengths), len(record.codes))
    return header + lengths.tobytes() + ids.astype(f"<u{width}").tobytes() + key


def decode_record(data: bytes) -> TokenRecord:
    """The inverse of `encode_record`.

    Raises:
        InputError: another format, or not as many bytes as the header announces.
    """
    if len(data) < _HEADER.size:
        raise InputError(f"token record of {len(data)} bytes: expected at least {_HEADER.size}")
    version, width, key_bytes, captions, codes = _HEADER.unpack_from(data)
    if version != FORMAT:
        raise InputError(f"token record of format {version}: expected format {FORMAT}")
    start = _HEADER.size + 4 * captions
    if len(data) < start:
        raise InputError(f"token record of {len(data)} bytes: expected at least {start}")
    lengths = np.frombuffer(data, "<u4", captions, _HEADER.size).astype(np.int64)
    count = int(lengths.sum()) + codes
    end = start + width * count
    if len(data) != end + key_bytes:
        raise InputError(f"token record of {len(data)} bytes: expected {end + key_bytes}")
    ids = np.frombuffer(data, f"<u{width}", count, start).astype(np.int32)
    *texts, image = np.split(ids, np.cumsum(lengths))
    return TokenRecord(data[end:].decode(), tuple(texts), image)
