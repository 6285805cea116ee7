"""What a tree on disk says of its arrays, held against the bytes that are there.

A few bytes of a description can announce arrays, or the pieces they are kept in, that no memory
holds; so it is read before any array is. Orbax writes the trees, but tensorstore alone reads them
here: Orbax takes as long to import as all arrays of a small model take to read.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import tensorstore as ts

from cogview_jax.runtime.errors import SystemFault
from cogview_jax.runtime.faults import raise_faults, retried
from cogview_jax.runtime.files import read_json

T = TypeVar("T")

#: What arrays may take in memory: so many bytes, and so many times the bytes on disk. Trained
#: numbers hardly shrink on disk; arrays of zeros do.
SPARE, UNPACKED = 64 << 20, 64
#: Nodes of the trees in which Orbax's format finds arrays are kept, so that each is read once.
_NODES = "cache_pool#nodes"


@dataclass(frozen=True)
class StoredArray:
    """An array on disk: its shape and type, and what reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    store: ts.TensorStore

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes it takes in memory."""
        return self.size * self.dtype.itemsize


def stored_metadata(path: Path) -> dict[str, Any]:
    """The arrays of a tree, each a `StoredArray` that is not read yet, once they can be true.

    Raises:
        ValueError: it is damaged, or keeps an array in pieces that are far larger than it.
        OSError: it cannot be read.
        SystemFault: the machine cannot read it, and could not when it was tried again.
    """
    described = _description(path)
    try:
        names = list(_names(described))
        stores = from_store(lambda: _opened(path, names, described), path)
        found: dict[str, Any] = {}
        for keys, store in zip(names, stores, strict=True):
            array = StoredArray(tuple(store.shape), np.dtype(store.dtype.numpy_dtype), store)
            chunk = store.chunk_layout.read_chunk.shape or array.shape
            piece = tuple(map(int, filter(None, chunk)))
            # A piece is taken whole into memory, however small the array.
            if math.prod(piece) * array.dtype.itemsize > max(SPARE, array.nbytes):
                raise ValueError(f"an array of shape {array.shape} is kept in pieces of {piece}")
            *sections, last = keys
            functools.reduce(lambda node, key: node.setdefault(key, {}), sections, found)[last] = (
                array
            )
    except (SystemFault, OSError):
        raise
    except Exception as error:  # a damaged description can end in any of them
        raise ValueError(str(error) or type(error).__name__) from error
    return found


def _opened(
    path: Path, names: Sequence[Sequence[str]], described: Mapping[str, Any]
) -> list[ts.TensorStore]:
    """The arrays of these names at `path`, all at once."""
    context = ts.Context({_NODES: {"total_bytes_limit": 100 << 20}})
    spec: dict[str, Any] = {"driver": "zarr3" if described.get("use_zarr3") else "zarr"}
    if described.get("store_array_data_equal_to_fill_value"):
        spec["fill_missing_data_reads"] = False  # what is missing is damage, not zeros

    def opened(name: str) -> Any:
        if not described.get("use_ocdbt", True):
            store = _files(path / name)
            return ts.open(spec | {"kvstore": store}, context=context, read=True)
        store = {"driver": "ocdbt", "base": _files(path), "cache_pool": _NODES, "path": f"{name}/"}
        return ts.open(spec | {"kvstore": store}, context=context, open=True, read=True)

    return [each.result() for each in [opened(".".join(keys)) for keys in names]]


def _files(folder: Path) -> dict[str, Any]:
    """A folder for tensorstore; in a URL, characters such as # and % would mean something else."""
    return {"driver": "file", "path": f"{folder}/"}


def check_room(path: Path, found: Any) -> None:
    """Refuses arrays that are larger than the bytes on disk can be.

    Parameters alone are held to that: moments of an optimizer that has made no step are zeros, and
    shrink to nothing.

    Args:
        path: the tree.
        found: from `stored_metadata`.

    Raises:
        ValueError: the arrays' bytes, and those of the files.
    """
    arrays = sum(array.nbytes for array in jax.tree.leaves(found))
    there = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if arrays > (most := SPARE + UNPACKED * there):
        raise ValueError(
            f"its arrays take {arrays} bytes, but its files have {there}: expected arrays of at"
            f" most {most}"
        )


def _description(path: Path) -> dict[str, Any]:
    """What Orbax has written of the tree at `path`."""
    try:
        return retried(lambda: read_json(path / "_METADATA"), str(path))
    except FileNotFoundError:
        raise ValueError("there is no _METADATA in it") from None


def _names(described: Mapping[str, Any]) -> Iterator[list[str]]:
    """The keys of every array.

    Refuses those that would be paths: some forms of the format make folders of them.
    """
    try:
        arrays = [
            [key["key"] for key in entry["key_metadata"]]
            for entry in described["tree_metadata"].values()
            if not entry["value_metadata"].get("skip_deserialize")  # a place without an array
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its _METADATA is damaged ({error!r})") from error
    for keys in arrays:
        for key in keys:
            if not isinstance(key, str) or key in ("", ".", "..") or "/" in key or "\0" in key:
                raise ValueError(f"an array called {repr(key)[:60]}, which is no name")
        yield keys


def from_store(work: Callable[[], T], path: Path) -> T:
    """`work()`, which reads `path` with tensorstore; faults of the machine are waited out."""
    return retried(lambda: raise_faults(work), str(path))
