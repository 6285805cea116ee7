"""Writes trees of parameters to disk in Orbax's format, as a whole or one array at a time.

A model of billions of parameters need not be in memory to be converted: `save_tree` takes arrays
that are made when they are written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cogview_jax.checkpoints.orbax_noise import silence
from cogview_jax.checkpoints.stored_tree import Deferred


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
