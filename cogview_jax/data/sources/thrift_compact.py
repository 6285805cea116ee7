"""Thrift's compact protocol, in which Parquet describes itself.

The source is Apache Thrift, "Thrift Compact protocol encoding". Numbers, bytes, lists and structs
are read; a text stays bytes, a number of floating point its eight bytes.
"""

from typing import Any

_DEPTH = 16


def read_struct(data: bytes, at: int = 0, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of the struct that begins at `at`, by their numbers, and where it ends.

    Raises:
        IndexError: it goes on behind the data.
        ValueError: there is no struct.
    """
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        if head & 15 in (1, 2):  # a boolean is its own type
            fields[number] = head & 15 == 1
        else:
            fields[number], at = _value(data, at, head & 15, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 12:
        return read_struct(data, at, depth + 1)
    if kind == 3:
        return data[at], at + 1
    if kind in (9, 10):
        return _list(data, at, depth + 1)
    if kind in (7, 8):
        size = 8
        if kind == 8:
            size, at = read_varint(data, at)
        if at + size > len(data):
            raise IndexError
        return data[at : at + size], at + size
    raise ValueError(f"type {kind}")


def _list(data: bytes, at: int, depth: int) -> tuple[list, int]:
    size, kind = data[at] >> 4, data[at] & 15
    at += 1
    if size == 15:
        size, at = read_varint(data, at)
    if depth > _DEPTH or size > len(data):
        raise ValueError("nested too deeply, or too long")
    values = []
    for _ in range(size):
        value, at = (data[at], at + 1) if kind in (1, 2) else _value(data, at, kind, depth)
        values.append(value)
    return values, at


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and where it ends; raises as `read_struct` does."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of too many bits")
