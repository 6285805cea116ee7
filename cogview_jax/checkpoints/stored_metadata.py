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
from cogview_jax.runtime.faults import is_passing, reason, retried
from cogview_jax.runtime.files import read_json
from cogview_jax.runtime.library_errors import raise_faults

T = TypeVar("T")

#: What arrays may take in memory: so many bytes, and so many times the bytes on disk. Trained
#: numbers hardly shrink on disk; arrays of zeros do.
SPARE, UNPACKED = 64 << 20, 64


def stored_metadata(path: Path) -> Any:
    """What is known of the arrays of a tree, each with `shape` and `dtype`, once it can be true.

    Raises:
        ValueError: it is damaged, or its arrays are larger than the bytes on disk can be.
        OSError: it cannot be read.
        SystemFault: the machine cannot read it, and could not when it was tried again.
    """
    _check_names(path)

    def read() -> Any:
        # The handler alone: of one item of a checkpoint, a reader complains what is missing.
        return ocp.PyTreeCheckpointHandler().metadata(path).tree

    try:
        found = from_disk(read, path)
        leaves = jax.tree.leaves(found)
        chunks = [leaf.storage.chunk_shape if leaf.storage else leaf.shape for leaf in leaves]
        arrays = sum(_bytes(leaf.shape, leaf.dtype) for leaf in leaves)
        # A chunk is taken whole into memory, however small the array.
        whole = max(_bytes(c, leaf.dtype) for c, leaf in zip(chunks, leaves, strict=True))
    except (SystemFault, OSError):
        raise
    except Exception as error:  # a damaged description can end in any of them
        raise ValueError(str(error) or type(error).__name__) from error
    there = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if max(arrays, whole) > (most := SPARE + UNPACKED * there):
        raise ValueError(
            f"its arrays take {arrays} bytes, in pieces of up to {whole}, but its files"
            f" have {there} bytes: expected arrays of at most {most}"
        )
    return found


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


def _bytes(shape: Sequence[int], dtype: Any) -> int:
    return math.prod(map(int, shape)) * np.dtype(dtype).itemsize


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
