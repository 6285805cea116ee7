"""Trees of parameters on disk, in Orbax's format: as a whole, or one array at a time.

A model of billions of parameters need not be in memory to be converted: `save_tree` takes arrays
that are made when they are written, `stored_tree` gives arrays that are read when they are asked
for. What a tree says of its arrays is held against the bytes that are there before any is read.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cogview_jax.checkpoints.orbax_noise import silence
from cogview_jax.checkpoints.stored_metadata import check_room, from_disk, stored_metadata
from cogview_jax.runtime.errors import InputError


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

    def __deepcopy__(self, memo: dict | None) -> "_Own":
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
    silence()
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


def restore_each(path: Path, shapes: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays that `restore_tree` gives, each with its keys, one at a time, the largest first.

    Whoever turns each into another form before asking for the next never holds both forms of a
    whole tree. Every process of a run iterates.

    Raises:
        InputError: they are not there, or of other shapes.
    """
    check_shapes(path, stored_shapes(path), sizes(shapes))
    yield from _each(path, shapes, lambda keys: (path, keys))


def picked_tree(folder: Path, names: Any) -> dict[str, Any]:
    """`stored_tree` of arrays out of the trees in `folder`.

    `names` has a text in the place of each array: "TREE/KEY/...", its place in one of these trees.
    """
    trees = {
        tree: stored_tree(folder / tree) for tree in {_place(x)[0] for x in jax.tree.leaves(names)}
    }

    def pick(name: str) -> Deferred:
        tree, keys = _place(name)
        try:
            found: Any = functools.reduce(operator.getitem, keys, trees[tree])
        except KeyError as error:
            raise _unreadable(folder, error) from error
        return found

    return jax.tree.map(pick, names)


def restore_picked(
    folder: Path, names: Any, shapes: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What `restore_each` gives, of the arrays of `picked_tree`."""
    check_shapes(folder, sizes(picked_tree(folder, names)), sizes(shapes))

    def place(keys: Sequence[Any]) -> tuple[Path, Sequence[Any]]:
        tree, there = _place(functools.reduce(operator.getitem, (k.key for k in keys), names))
        return folder / tree, [jax.tree_util.DictKey(key) for key in there]

    yield from _each(folder, shapes, place)


def placed(tree: Any, shapes: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of a tree of `Deferred`s with their keys, typed and placed as `shapes` says."""
    for (keys, array), shape in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shapes), strict=True
    ):
        values = array.make().astype(shape.dtype)
        place = jax.make_array_from_callback(shape.shape, shape.sharding, values.__getitem__)
        yield tuple(key.key for key in keys), place


def nested(arrays: Iterator[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """The tree of arrays that come with their keys."""
    tree: dict[str, Any] = {}
    for (*sections, key), array in arrays:
        functools.reduce(lambda node, name: node.setdefault(name, {}), sections, tree)[key] = array
    return tree


def _each(
    path: Path,
    shapes: Mapping[str, Any],
    place: Callable[[Sequence[Any]], tuple[Path, Sequence[Any]]],
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of `shapes`, the largest first; `place` says where the one at some keys lies."""
    wanted = jax.tree_util.tree_leaves_with_path(shapes)
    wanted.sort(key=lambda pair: (-math.prod(pair[1].shape), jax.tree_util.keystr(pair[0])))
    try:
        with _reader() as reader:
            for keys, shape in wanted:
                how = ocp.ArrayRestoreArgs(
                    sharding=shape.sharding, global_shape=shape.shape, dtype=shape.dtype
                )
                yield tuple(key.key for key in keys), _only(reader, *place(keys), how)
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(path, error) from error


def _place(name: str) -> tuple[str, list[str]]:
    tree, *keys = name.split("/")
    return tree, keys


def stored_tree(path: Path) -> dict[str, Any]:
    """The arrays at `path` in their own types, each a `Deferred` that reads it alone."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: Deferred(leaf.shape, leaf.dtype, lambda: _read(path, keys)),
        _metadata(path),
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


def _metadata(path: Path) -> Any:
    try:
        found = stored_metadata(path)
        check_room(path, found)
        return found
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"{path} cannot be read as bundle.json describes it: {lines[0][:300]}")


def _read(path: Path, keys: Sequence[Any]) -> np.ndarray:
    """The one array at `keys`."""
    with _reader() as reader:
        return np.asarray(_only(reader, path, keys, ocp.RestoreArgs(restore_type=np.ndarray)))


def _only(
    reader: ocp.Checkpointer, path: Path, keys: Sequence[Any], how: ocp.RestoreArgs
) -> np.ndarray | jax.Array:
    """The one array at `keys`, restored as `how` says."""
    item: Any = 0
    for key in reversed(keys):
        item, how = {key.key: item}, {key.key: how}
    args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)

    def read() -> np.ndarray | jax.Array:
        return jax.tree.leaves(reader.restore(path, args=args))[0]

    return from_disk(read, path)


def _reader() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
