"""The checkpoints of a run: written while training goes on, read back onto any mesh."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from cogview_jax.runtime.errors import InputError
from cogview_jax.training.state import TrainState

#: The parts of a state, kept apart so that one can be read without the others.
ITEMS = ("params", "opt_state", "extras", "loss_scale")


class Checkpointer:
    """DIRECTORY/STEP/ with params, opt_state, extras, loss_scale and meta (JSON).

    STEP is the state's position, the place in the data; meta holds it, and how many steps changed
    the parameters, the clock of the random keys. So a state that is restored continues exactly.
    Saving is asynchronous and atomic: a checkpoint has its final name
    only when it is whole.
    """

    def __init__(self, directory: Path, keep: int = 2):
        """Opens `directory`, made with its first checkpoint; the newest `keep` stay."""
        directory = directory.absolute()
        if jax.process_index() == 0 and directory.is_dir():
            for half_written in directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half_written)
        handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
        self._manager = ocp.CheckpointManager(
            directory,
            item_handlers=handlers | {"meta": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(create=False, preservation_policy=LatestN(n=keep)),
        )

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing `state`, unless this step is there already."""
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()}
        meta = ocp.args.JsonSave({"step": step, "updates": int(state.step)})
        self._manager.save(step, args=ocp.args.Composite(**items, meta=meta))

    def restore(self, shapes: TrainState) -> TrainState | None:
        """The newest state, with the shapes, types and shardings of `shapes`; None where none is.

        Raises:
            InputError: the checkpoint is of another model, or cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        self._check_sizes(step, shapes.params)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in _trees(shapes).items()}
        with self._reading(step):
            found = self._manager.restore(
                step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
            )
        parts = {name: found[name] if name in items else getattr(shapes, name) for name in ITEMS}
        # Checkpoints of before there was a loss scale say nothing of updates: each step was one.
        updates = jax.numpy.int32(found["meta"].get("updates", step))
        return shapes.replace(step=jax.device_put(updates, shapes.step.sharding), **parts)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        """The block closes it."""
        return self

    def __exit__(self, *exception) -> None:
        """Closes it, also after an error."""
        self.close()

    def _check_sizes(self, step: int, params: Any) -> None:
        """Refuses a checkpoint of another model before its arrays are read."""
        with self._reading(step):
            there = _sizes(self._manager.item_metadata(step)["params"])
        here = _sizes(params)
        for name in sorted({*there, *here}):
            if there.get(name) != here.get(name):
                raise InputError(
                    f"{self._place(step)} is of another model: {name} has shape"
                    f" {there.get(name, 'none')} there, but the config's model has"
                    f" {here.get(name, 'none')}"
                )

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns what Orbax raises about a damaged checkpoint into one line."""
        try:
            yield
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise InputError(f"{self._place(step)} cannot be restored: {reason}") from error

    def _place(self, step: int) -> str:
        return f"checkpoint {self._manager.directory}/{step}"


def _sizes(params: Any) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape."""
    leaves = jax.tree.leaves_with_path(params)
    return {".".join(key.key for key in path): tuple(leaf.shape) for path, leaf in leaves}


def _trees(state: TrainState) -> dict[str, Any]:
    """The items of a state that hold arrays: an empty one has no files."""
    items = {name: getattr(state, name) for name in ITEMS}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}
