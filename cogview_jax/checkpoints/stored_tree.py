"""Trees of parameters on disk, in Orbax's format: as a whole, or one array at a time.

A model of billions of parameters need not be in memory to be converted: `save_tree` takes arrays
that are made when they are written, `stored_tree` gives arrays that are read when they are asked
for. What a tree says of its arrays is held against the bytes that are there before any is read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import is_passing, reason, retried
from cogview_jax.runtime.files import read_json
from cogview_jax.runtime.library_errors import raise_faults

T = TypeVar("T")

#: What arrays may take in memory: so many bytes, and so many times the bytes on disk. Trained
#: numbers hardly shrink on disk; arrays of zeros do.
SPARE, UNPACKED = 64 << 20, 64


@dataclass(frozen=True)
class Deferred:
    """An array of a tree that is made, or read, when `make` is called."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class _Own(np.ndarray):
    """An array that nobody else changes, so that Orbax need not copy it before it writes it."""

    def __deepcopy__(self, memo: dict) -> "_Own":
        return self


class _DeferredHandler(ocp.type_handlers.NumpyHandler):
    """Writes deferred arrays as Orbax writes numpy's, one after another."""

    async def serialize(self, values: Sequence[Deferred], infos: Sequence, args: Any = None):
        """Makes, writes and forgets each; nothing is left to be done in the background."""
        for value, info, arg in zip(values, infos, args, strict=True):
            for written in await super().serialize([value.make().view(_Own)], [info], [arg]):
                written.result()
        return []


def save_tree(path: Path, tree: Any) -> None:
    """Writes nested dicts of arrays, or of `Deferred`s; every process of a run calls it.

    Deferred arrays are for one process, which then holds one of them at a time.
    """
    if not isinstance(jax.tree.leaves(tree)[0], Deferred):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
        return
    registry = ocp.type_handlers.create_type_handler_registry(
        (Deferred, _DeferredHandler()),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns where it is missing
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as writer:
        writer.save(path, args=ocp.args.PyTreeSave(tree))


def restore_tree(path: Path, shapes: Mapping[str, Any]) -> Any:
    """The arrays at `path`, with the shapes, types and shardings of `shapes`.

    Raises:
        InputError: they are not there, of other shapes, or say that they are larger than the bytes
            on disk can be.
        SystemFault: the machine cannot read them, and could not when it was tried again.
    """
    check_shapes(path, stored_shapes(path), sizes(shapes))

    def read() -> Any:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, shapes)

    try:
        return from_disk(read, path)
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(path, error) from error


def stored_tree(path: Path) -> dict[str, Any]:
    """The arrays at `path` in their own types, each a `Deferred` that reads it alone."""
    found = _metadata(path)
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: Deferred(leaf.shape, leaf.dtype, lambda: _read(path, keys)), found
    )


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every array at `path`, by its dotted name; InputError as in `restore_tree`."""
    return sizes(_metadata(path))


def sizes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf, by its dotted name."""
    leaves = jax.tree.leaves_with_path(tree)
    return {".".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}


def check_shapes(
    path: Path, stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses a tree whose arrays are not those that are described; both as from `sizes`."""
    for name in sorted({*stored, *wanted}):
        if stored.get(name) != wanted.get(name):
            raise InputError(
                f"{path} cannot be read as bundle.json describes it: {name[:200]} has shape"
                f" {stored.get(name, 'none')} there, but {wanted.get(name, 'none')} in bundle.json"
            )


def from_disk(work: Callable[[], T], path: Path) -> T:
    """`work()`, which reads `path` with Orbax; faults of the machine are not taken for damage.

    They are waited out where this is the only process. Several meet within Orbax, where none may
    begin anew: all are started again.
    """
    if jax.process_count() == 1:
        return retried(lambda: raise_faults(work), str(path))
    try:
        return raise_faults(work)
    except OSError as error:
        if is_passing(error):
            raise SystemFault(f"{path}: {reason(error)}") from error
        raise


def _metadata(path: Path) -> Any:
    """What is known of the arrays, each with `shape` and `dtype`, once it can be true."""
    _check_names(path)

    def read() -> Any:
        with _reader() as reader:
            return reader.metadata(path).item_metadata.tree

    try:
        found = from_disk(read, path)
        leaves = jax.tree.leaves(found)
        chunks = [leaf.storage.chunk_shape if leaf.storage else leaf.shape for leaf in leaves]
        arrays = sum(_bytes(leaf.shape, leaf.dtype) for leaf in leaves)
        # A chunk is taken whole into memory, however small the array.
        whole = max(_bytes(c, leaf.dtype) for c, leaf in zip(chunks, leaves, strict=True))
    except SystemFault:
        raise
    except Exception as error:  # a damaged description can end in any of them
        raise _unreadable(path, error) from error
    there = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if max(arrays, whole) > (most := SPARE + UNPACKED * there):
        raise InputError(
            f"{path}: its arrays take {arrays} bytes, in pieces of up to {whole}, but its files"
            f" have {there} bytes: expected arrays of at most {most}"
        )
    return found


def _check_names(path: Path) -> None:
    """Refuses arrays whose names would be paths: some forms of the format make folders of them."""
    try:
        described = read_json(path / "_METADATA")
        keys = [
            key["key"]
            for entry in described["tree_metadata"].values()
            for key in entry["key_metadata"]
        ]
    except FileNotFoundError:
        raise InputError(f"{path} holds no arrays: there is no _METADATA in it") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    for key in keys:
        if not isinstance(key, str) or key in ("", ".", "..") or "/" in key or "\0" in key:
            raise InputError(f"{path}: an array called {repr(key)[:60]}, which is no name")


def _bytes(shape: Sequence[int], dtype: Any) -> int:
    return math.prod(map(int, shape)) * np.dtype(dtype).itemsize


def _unreadable(path: Path, error: Exception) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"{path} cannot be read as bundle.json describes it: {lines[0][:300]}")


def _read(path: Path, keys: Sequence[Any]) -> np.ndarray:
    """The one array at `keys`."""
    item, how = 0, ocp.RestoreArgs(restore_type=np.ndarray)
    for key in reversed(keys):
        item, how = {key.key: item}, {key.key: how}
    args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)

    def read() -> np.ndarray:
        with _reader() as reader:
            return jax.tree.leaves(reader.restore(path, args=args))[0]

    return from_disk(read, path)


def _reader() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
