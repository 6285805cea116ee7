"""Trees of parameters on disk, in Orbax's format: as a whole, or one array at a time.

A model of billions of parameters need not be in memory to be converted: `stored_tree` gives arrays
that are read when they are asked for, and `tree_writer` takes arrays that are made when they are
written. What a tree says of its arrays is held against the bytes that are there before any is read.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cogview_jax.checkpoints.stored_metadata import (
    StoredArray,
    check_room,
    from_store,
    stored_metadata,
)
from cogview_jax.runtime.errors import InputError

#: Bytes of arrays that are read at a time; a larger one is read alone.
AHEAD = 32 << 20


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


def restore_tree(path: Path, shapes: Mapping[str, Any]) -> Any:
    """The arrays at `path`, with the shapes, types and shardings of `shapes`.

    Those without a sharding stay arrays of numpy. Of arrays that are split over processes each
    process reads its part.

    Raises:
        InputError: they are not there, of other shapes, or say that they are larger than the bytes
            on disk can be.
        SystemFault: the machine cannot read them, and could not when it was tried again.
    """
    return nested(restore_each(path, shapes))


def restore_each(path: Path, shapes: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays that `restore_tree` gives, each with its keys, one at a time, the largest first.

    Whoever turns each into another form before asking for the next never holds both forms of a
    whole tree.

    Raises:
        InputError: they are not there, or of other shapes.
    """
    stored = _metadata(path)
    check_shapes(path, sizes(stored), sizes(shapes))
    yield from _each(path, stored, shapes)


def picked_tree(folder: Path, names: Any) -> dict[str, Any]:
    """`stored_tree` of arrays out of the trees in `folder`.

    `names` has a text in the place of each array: "TREE/KEY/...", its place in one of these trees.
    """
    return _deferred(folder, _picked(folder, names))


def restore_picked(
    folder: Path, names: Any, shapes: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What `restore_each` gives, of the arrays of `picked_tree`."""
    stored = _picked(folder, names)
    check_shapes(folder, sizes(stored), sizes(shapes))
    yield from _each(folder, stored, shapes)


def _picked(folder: Path, names: Any) -> dict[str, Any]:
    """The `StoredArray`s of `picked_tree`."""
    items = {name.split("/")[0] for name in jax.tree.leaves(names)}
    trees = {item: _metadata(folder / item) for item in items}

    def pick(name: str) -> StoredArray:
        item, *keys = name.split("/")
        try:
            found: Any = functools.reduce(operator.getitem, keys, trees[item])
        except KeyError as error:
            raise _unreadable(folder, error) from error
        return found

    return jax.tree.map(pick, names)


def placed(tree: Any, shapes: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of a tree of `Deferred`s with their keys, typed and placed as `shapes` says."""
    for (keys, array), shape in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shapes), strict=True
    ):
        values = array.make().astype(shape.dtype, copy=False)
        yield tuple(key.key for key in keys), _placed(shape, values.__getitem__)


def nested(arrays: Iterator[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """The tree of arrays that come with their keys."""
    tree: dict[str, Any] = {}
    for (*sections, key), array in arrays:
        functools.reduce(lambda node, name: node.setdefault(name, {}), sections, tree)[key] = array
    return tree


def _each(
    path: Path, stored: Mapping[str, Any], shapes: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of `stored` as `shapes` says, the largest first; small ones are read together."""
    leaves = jax.tree_util.tree_leaves_with_path(stored)
    wanted = [(*leaf, shape) for leaf, shape in zip(leaves, jax.tree.leaves(shapes), strict=True)]
    wanted.sort(key=lambda each: (-each[1].size, jax.tree_util.keystr(each[0])))
    try:
        while wanted:
            count = sum(total <= AHEAD for total in np.cumsum([each[1].nbytes for each in wanted]))
            begun = [
                (tuple(key.key for key in keys), shape, _begun(path, array, shape))
                for keys, array, shape in wanted[: count or 1]
            ]
            del wanted[: count or 1]
            while begun:  # nothing here holds an array that was given away
                yield _made(*begun.pop(0))
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(path, error) from error


def _begun(path: Path, array: StoredArray, shape: Any) -> Callable[[Any], np.ndarray]:
    """What gives the numbers of `array` at an index; unless it is split, reading begins now."""
    if shape.sharding is None or shape.sharding.is_fully_replicated:
        reads = [array.store.read()]

        def whole() -> np.ndarray:
            try:
                return reads[-1].result()
            except Exception:
                reads.append(array.store.read())  # for when it is asked for again
                raise

        return lambda index: from_store(whole, path)[index]
    return lambda index: from_store(lambda: array.store[index].read().result(), path)


def _made(keys: Any, shape: Any, read: Callable[[Any], np.ndarray]) -> tuple[Any, Any]:
    return keys, _placed(shape, read)


def _placed(shape: Any, read: Callable[[Any], np.ndarray]) -> np.ndarray | jax.Array:
    """What `read` gives for an index, with the type and the sharding of `shape`."""

    def values(index: Any) -> np.ndarray:
        return np.asarray(read(index)).astype(shape.dtype, copy=False)

    if shape.sharding is None:
        return values(...)
    return jax.make_array_from_callback(shape.shape, shape.sharding, values)


def stored_tree(path: Path) -> dict[str, Any]:
    """The arrays at `path` in their own types, each a `Deferred` that reads it alone."""
    return _deferred(path, _metadata(path))


def _deferred(path: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """`StoredArray`s as what reads them."""
    return jax.tree.map(
        lambda array: Deferred(array.shape, array.dtype, lambda: _read(path, array)), stored
    )


def _read(path: Path, array: StoredArray) -> np.ndarray:
    try:
        return from_store(lambda: np.asarray(array.store.read().result()), path)
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(path, error) from error


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


def _metadata(path: Path) -> dict[str, Any]:
    try:
        found = stored_metadata(path)
        check_room(path, found)
        return found
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"{path} cannot be read as bundle.json describes it: {lines[0][:300]}")
