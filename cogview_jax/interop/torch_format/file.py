"""Reads and writes the file format of torch without torch.

A torch file is a zip. NAME/data.pkl holds the tree (see `pickle.py`), NAME/data/KEY the numbers of
a storage, and NAME/byteorder the order of their bytes. A tensor is read when it is asked for, and
written when it is made, so that only one at a time is in memory, however large the file is. Before
torch 1.6 files were no zips (see `legacy.py`).
"""

import functools
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.interop.torch_format.legacy import is_legacy, read_legacy
from cogview_jax.interop.torch_format.opcodes import BYTES
from cogview_jax.interop.torch_format.pickle import Slot, View, dump, load
from cogview_jax.interop.torch_format.tensor import Tensor, mapped
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path

#: A tensor starts at a multiple of this many bytes, as in files that torch writes.
ALIGNMENT = 64
#: The header of a member, before its name (APPNOTE 4.3.7); the lengths of name and extra field.
_HEADER = struct.Struct("<26xHH")
#: A file may unpack to `SPARE` bytes and `UNPACKED` times its own size. Torch compresses nothing.
SPARE, UNPACKED = 64 << 20, 64
_CHUNK = 1 << 20
#: zipfile raises one of these if a member is damaged.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


def read_torch(path: Path | str) -> Any:
    """Reads the tree in a torch file: dict, list, tuple, set, str, numbers, and `Tensor`s.

    The checksum of every member is verified first, which reads the file once. Files from before
    torch 1.6 have no checksums.

    Raises:
        InputError: it is no torch file, it is damaged, or its pickle holds more than tensors and
            plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no torch file at {path}")
    if not zipfile.is_zipfile(path):
        if is_legacy(path):
            return read_legacy(path)
        with open(path, "rb") as file:
            cut = file.read(2) == b"PK"
        raise InputError(
            f"{path} is cut short: it begins as a torch file, but lacks its directory"
            if cut
            else f"{path} is no torch file: expected what torch.save writes"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            _verify(path, archive)
            return _read_tree(path, archive)
    except _DAMAGED as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _verify(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses a file whose members are too large, or differ from what its directory says."""
    announced = sum(member.file_size for member in archive.infolist())
    most = SPARE + UNPACKED * path.stat().st_size
    if announced > most:
        raise InputError(
            f"{path} says that it unpacks to {announced} bytes, expected at most {most}"
        )
    for member in archive.infolist():
        there = member.compress_size if member.compress_type == zipfile.ZIP_STORED else None
        try:
            if there in (None, member.file_size):
                with archive.open(member) as file:
                    there = sum(map(len, iter(lambda: file.read(_CHUNK), b"")))
        except zipfile.BadZipFile as error:
            raise InputError(
                f"{path} is damaged, or was written without checksums: {member.filename} has"
                " another"
            ) from error
        if there != member.file_size:
            raise InputError(
                f"{path} is damaged: {member.filename} has {there} bytes, but its directory says"
                f" {member.file_size}"
            )


def _read_tree(path: Path, archive: zipfile.ZipFile) -> Any:
    members = {member.filename: member for member in archive.infolist()}
    roots = [name.split("/")[0] for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1 or len(members) != len(archive.infolist()):
        raise InputError(f"{path} is a zip, but no torch file: expected one data.pkl in one folder")
    root = roots[0]
    order = "little"  # Files from before torch 2.1 do not name it.
    if f"{root}/byteorder" in members:
        with archive.open(f"{root}/byteorder") as file:
            order = file.read(16).decode("ascii", "replace")

    def tensor(view: View) -> Tensor:
        member = members.get(f"{root}/data/{view.storage.key}")
        if member is None:
            raise InputError(f"its storage {view.storage.key:.60} is missing")
        needed = view.storage.size * view.dtype.itemsize
        if member.file_size < needed:
            raise InputError(
                f"its storage {view.storage.key:.60} has {member.file_size} bytes, expected"
                f" {needed}"
            )
        return Tensor(view, order != sys.byteorder, functools.partial(_bytes, path, member))

    try:
        with archive.open(f"{root}/data.pkl") as file:
            return load(io.BytesIO(file.read(BYTES + 1)), tensor)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _bytes(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """Returns the bytes of a member. They are mapped, unless they have to be unpacked."""
    if member.compress_type != zipfile.ZIP_STORED:
        with zipfile.ZipFile(path) as archive:
            return np.frombuffer(archive.read(member), np.uint8)
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(_HEADER.size)
    start = member.header_offset + _HEADER.size + sum(_HEADER.unpack(header))
    return mapped(path, start, member.file_size)


def write_torch(path: Path, tree: Any, arrays: Iterable[tuple[Slot, np.ndarray]]) -> None:
    """Writes a file that `torch.load(path, weights_only=True)` reads, whole or not at all.

    The same content gives the same bytes.

    Args:
        path: the file.
        tree: dicts and plain values, with a `Slot` for each tensor.
        arrays: the values of every slot, in any order, each once.
    """
    keys = {slot: str(number) for number, slot in enumerate(_slots(tree))}
    # The archive is closed, and so complete, before it gets its name.
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, "data.pkl", dump(tree, keys))
        _add(archive, "byteorder", sys.byteorder.encode())
        _add(archive, "version", b"3\n")
        written = set()
        for slot, array in arrays:
            assert (array.shape, array.dtype) == (slot.shape, slot.dtype), (array, slot)
            flat = np.ascontiguousarray(array).reshape(-1)
            _add(archive, f"data/{keys[slot]}", flat.view(np.uint8).data)
            written.add(slot)
            del array, flat  # Frees the array before the next is made.
        assert written == set(keys), "a slot without its array"


def _slots(tree: Any) -> Iterator[Slot]:
    if isinstance(tree, Slot):
        yield tree
    elif isinstance(tree, dict):
        for entry in tree.values():
            yield from _slots(entry)


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Adds a member. An extra field moves its data to a multiple of `ALIGNMENT` bytes."""
    member = zipfile.ZipInfo(f"archive/{name}")  # It is dated 1980, whatever the time.
    member.file_size, member.CRC = len(data), 0  # zipfile computes the checksum.
    zip64 = member.file_size * 1.05 > zipfile.ZIP64_LIMIT  # zipfile decides it so.
    assert archive.fp is not None, "the archive is open"
    ends = archive.fp.tell() + len(member.FileHeader(zip64)) + 4
    filling = -ends % ALIGNMENT
    member.extra = struct.pack("<2sH", b"FB", filling) + bytes(filling)
    with archive.open(member, "w", force_zip64=zip64) as file:
        file.write(data)
