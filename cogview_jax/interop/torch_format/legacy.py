"""Reads files from before torch 1.6 without torch.

Such a file begins with five pickles: a magic number, the version of the protocol, a description of
the machine, the tree, and the keys of its storages. Then follow, for every key, how many numbers
its storage has (int64), and the numbers.
"""

import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cogview_jax.interop.torch_format.pickle import Storage, View, load
from cogview_jax.interop.torch_format.tensor import Tensor, mapped
from cogview_jax.runtime.errors import InputError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
#: Every such file begins with the magic number as a pickle of protocol 2.
_BEGINNING = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_COUNT = struct.Struct("<q")


def is_legacy(path: Path) -> bool:
    """Returns whether a file begins like one from before torch 1.6."""
    with open(path, "rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def read_legacy(path: Path) -> Any:
    """Reads the tree in a file; see `file.read_torch`.

    Raises:
        InputError: it is damaged, or its pickles hold more than tensors and plain containers.
    """
    try:
        with open(path, "rb") as file:
            return _read(path, file)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read(path: Path, file: BinaryIO) -> Any:
    storages: dict[str, Storage] = {}
    places: dict[
        str, tuple[int, int]
    ] = {}  # For each key, the bytes where its numbers begin and end.

    def tensor(view: View) -> Tensor:
        key = view.storage.key
        if storages.setdefault(key, view.storage) != view.storage:
            raise InputError(f"its storage {key:.60} has two types or sizes")
        return Tensor(view, swapped, lambda: _bytes(path, *places[key]))

    load(file, tensor)  # This is the magic number, which is known.
    protocol, machine = load(file, tensor), load(file, tensor)
    if type(protocol) is not int or protocol != PROTOCOL or not isinstance(machine, dict):
        small = type(protocol) is int and abs(protocol) < 1 << 32
        shown = protocol if small else type(protocol).__name__
        raise InputError(f"it is of protocol {shown}, expected {PROTOCOL}")
    swapped = machine.get("little_endian", True) != (sys.byteorder == "little")
    tree, keys = load(file, tensor), load(file, tensor)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError("its list of storages is none")
    size = path.stat().st_size
    for key in keys:
        count = _COUNT.unpack(file.read(_COUNT.size).ljust(_COUNT.size, b"\xff"))[0]
        storage = storages.get(key, Storage(key, np.dtype("uint8"), 0))
        start = file.tell()
        end = start + storage.size * storage.dtype.itemsize
        if key not in storages or count != storage.size or end > size:
            raise InputError(
                f"its storage {key} has {count} numbers and {size - start} bytes to the end of the"
                f" file, expected {storage.size} of {storage.dtype}: it is damaged or cut short"
            )
        places[key] = start, end
        file.seek(end)
    missing = sorted(storages.keys() - places.keys())
    if missing:
        raise InputError(f"its storage {missing[0]} is missing")
    return tree


def _bytes(path: Path, start: int, end: int) -> np.ndarray:
    return mapped(path, start, end - start)
