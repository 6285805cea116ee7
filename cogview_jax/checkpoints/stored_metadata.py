"""What a tree on disk says of its arrays, held against the bytes that are there.

A few bytes of a description can announce arrays, or the pieces they are kept in, that no memory
holds; so it is read before any array is.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from cogview_jax.runtime.errors import SystemFault
from cogview_jax.runtime.faults import is_passing, raise_faults, reason, retried
from cogview_jax.runtime.files import read_json

T = TypeVar("T")

#: What arrays may take in memory: so many bytes, and so many times the bytes on disk. Trained
#: numbers hardly shrink on disk; arrays of zeros do.
SPARE, UNPACKED = 64 << 20, 64


def stored_metadata(path: Path) -> Any:
    """What is known of the arrays of a tree, each with `shape` and `dtype`, once it can be true.

    Raises:
        ValueError: it is damaged, or keeps an array in pieces that are far larger than it.
        OSError: it cannot be read.
        SystemFault: the machine cannot read it, and could not when it was tried again.
    """
    _check_names(path)

    def read() -> Any:
        # The handler alone: of one item of a checkpoint, a reader complains what is missing.
        return ocp.PyTreeCheckpointHandler().metadata(path).tree

    try:
        found = from_disk(read, path)
        for leaf in jax.tree.leaves(found):
            piece = leaf.storage.chunk_shape if leaf.storage else leaf.shape
            # A piece is taken whole into memory, however small the array.
            if _bytes(piece, leaf) > max(SPARE, _bytes(leaf.shape, leaf)):
                raise ValueError(f"an array of shape {leaf.shape} is kept in pieces of {piece}")
    except (SystemFault, OSError):
        raise
    except Exception as error:  # a damaged description can end in any of them
        raise ValueError(str(error) or type(error).__name__) from error
    return found


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
    arrays = sum(_bytes(leaf.shape, leaf) for leaf in jax.tree.leaves(found))
    there = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if arrays > (most := SPARE + UNPACKED * there):
        raise ValueError(
            f"its arrays take {arrays} bytes, but its files have {there}: expected arrays of at"
            f" most {most}"
        )


def _check_names(path: Path) -> None:
    """Refuses arrays whose names would be paths: some forms of the format make folders of them."""
    try:
        described = retried(lambda: read_json(path / "_METADATA"), str(path))
        keys = [
            key["key"]
            for entry in described["tree_metadata"].values()
            for key in entry["key_metadata"]
        ]
    except FileNotFoundError:
        raise ValueError("there is no _METADATA in it") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its _METADATA is damaged ({error!r})") from error
    for key in keys:
        if not isinstance(key, str) or key in ("", ".", "..") or "/" in key or "\0" in key:
            raise ValueError(f"an array called {repr(key)[:60]}, which is no name")


def _bytes(shape: Sequence[int], leaf: Any) -> int:
    return math.prod(map(int, shape)) * np.dtype(leaf.dtype).itemsize


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
