"""One checkpoint of a run on disk: its items, apart, and what is known of them.

STEP/ holds params, opt_state, and where there are any extras (the model state), loss_scale and ema
(the average of the parameters), as Orbax writes trees; `meta` (JSON) and a manifest. Orbax's own
programs read it.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from cogview_jax.checkpoints.manifest import find_damage, has_manifest
from cogview_jax.checkpoints.stored_metadata import stored_metadata
from cogview_jax.checkpoints.stored_tree import sizes
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import is_passing, raise_faults, reason, retried
from cogview_jax.runtime.files import read_json

if TYPE_CHECKING:
    from cogview_jax.training.state import TrainState

T = TypeVar("T")

#: Stored item -> field of `TrainState`. Items lie apart so that one is read without the others.
ITEMS = {
    "params": "params",
    "opt_state": "opt_state",
    "extras": "model_state",
    "loss_scale": "loss_scale",
    "ema": "ema",
}
#: 1: has a manifest. Checkpoints of before that say no format and have none.
FORMAT = 1
META = Path("meta", "metadata")


def trees(state: "TrainState") -> dict[str, Any]:
    """The items of a state that hold arrays: an empty one has no files."""
    items = {name: getattr(state, field) for name, field in ITEMS.items()}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def write_meta(
    folder: Path,
    step: int,
    updates: int,
    metrics: Mapping[str, float],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes everything about a checkpoint but its arrays.

    step: the checkpoint's number, and the batch with which training continues. updates: how many
    steps changed the parameters; random keys depend on it. metrics: measured at this step; values
    that are not finite are left out, since JSON has none. notes: JSON values that the run needs to
    continue.
    """
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    meta = {"format": FORMAT, "step": step, "updates": updates, "next_batch": step}
    (folder / META).parent.mkdir()
    text = json.dumps(meta | {"metrics": finite} | ({"notes": notes} if notes else {}))
    (folder / META).write_text(text, encoding="utf-8")


def read_meta(folder: Path) -> dict[str, Any]:
    """What `write_meta` or an earlier version recorded.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
        SystemFault: the machine cannot read it, and could not when it was tried again.
    """
    path = folder / META
    meta = retried(lambda: read_json(path), str(path))
    if not isinstance(meta, dict):
        raise ValueError(f"{META} holds no JSON object")
    for name in ("format", "step", "updates", "next_batch"):
        if name in meta and not (type(meta[name]) is int and 0 <= meta[name] < 2**31):
            raise ValueError(f"{META} has {name} {str(meta[name])[:60]}, expected a whole number")
    metrics = meta.get("metrics", {})
    numbers = metrics.values() if isinstance(metrics, dict) else [None]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"{META} has metrics that are no numbers")
    if not isinstance(meta.get("notes", {}), dict):
        raise ValueError(f"{META} has notes that are no JSON object")
    return meta


def examine(folder: Path, part: int, parts: int) -> tuple[list[str], bool]:
    """What is wrong with a checkpoint's files, and whether it could be known.

    A checkpoint takes its name only when its manifest is there: one that has none lost it, unless
    an earlier version wrote it. That one cannot be verified, and is taken to be whole.

    Args:
        folder: the checkpoint.
        part: the share of this process in the work of `parts`.

    Raises:
        SystemFault: the disk fails, which says nothing of what was written.
    """
    if has_manifest(folder):
        return find_damage(folder, part, parts), True
    try:
        earlier = "format" not in retried(lambda: read_meta(folder), str(folder / META))
    except (OSError, ValueError) as error:
        return [f"{META}: {one_line(error)}"], True
    return ([], False) if earlier else (find_damage(folder, part, parts), True)


def check_sizes(folder: Path, params: Any) -> None:
    """Refuses a checkpoint of another model before its arrays are read."""
    there, here = sizes(stored_metadata(folder / "params")), sizes(params)
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise InputError(
                f"checkpoint {folder} is of another model: {name} has shape"
                f" {there.get(name, 'none')} there, but the config's model has"
                f" {here.get(name, 'none')}"
            )


def read_tree(folder: Path, name: str, shapes: Any) -> Any:
    """One item, with the shapes, types and shardings of `shapes`; every process reads its part."""
    stored_metadata(folder / name)  # refuses pieces that are larger than their arrays
    import orbax.checkpoint as ocp  # which takes long, and whoever opens a bundle needs none of it

    handler = ocp.StandardCheckpointHandler()
    return _from_disk(
        lambda: handler.restore(folder / name, args=ocp.args.StandardRestore(shapes)), folder / name
    )


def _from_disk(work: Callable[[], T], path: Path) -> T:
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


def one_line(error: BaseException) -> str:
    """What went wrong, out of the dumps of the libraries below."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    if isinstance(error, TimeoutError) and not str(error):
        return "it took too long"
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
