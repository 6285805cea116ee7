"""A program: ten steps on each of several meshes, as one of several processes.

    python training_losses.py MESHES.json

Process 0 prints {name: losses} as JSON on the last line. The file holds {name: sizes of the mesh}.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping

import jax
import numpy as np

import tiny
from cogview_jax.data.loader import batches
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.runtime.mesh import MeshConfig, local_parts, make_mesh, place_batch
from cogview_jax.runtime.processes import Timeouts, find_process_info, is_primary, start
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.state import state_shapes
from cogview_jax.training.step import make_step

STEPS = 10
#: Partitioning is the same, and compiling takes half as long.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Sequences:
    """A source of a hundred captioned grids."""

    def __len__(self):
        return 100

    def key(self, i):
        return str(i)

    def __getitem__(self, i):
        return jax.tree.map(lambda rows: rows[0], tiny.sequences(i, rows=1))


def losses(sizes: Mapping[str, int]) -> list[float]:
    """Of ten steps from the same start."""
    objective = tiny.transformer_objective()
    optimizer, rate = (make(tiny.OPTIMIZER, STEPS) for make in (make_optimizer, schedule))
    mesh = make_mesh(MeshConfig(**sizes))
    parts, ways = local_parts(mesh)
    stream = batches(
        Sequences(),
        global_batch=tiny.BATCH,
        seed=0,
        transform=lambda record, generator: record,
        skipped=SkippedLog(tempfile.gettempdir()),
        parts=parts,
        ways=ways,
    )
    step = make_step(objective, optimizer, rate, seed=3)
    with jax.set_mesh(mesh), contextlib.closing(stream):
        shapes = state_shapes(objective, optimizer, mesh)
        state = tiny.start(objective)
        state = state.replace(opt_state=jax.eval_shape(optimizer.init, state.params))
        state = jax.tree.map(whole, state, shapes)
        compiled = None
        found = []
        for _ in range(STEPS):
            batch = place_batch(next(stream), mesh)
            if compiled is None:
                compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile(QUICK)
            state, metrics = compiled(state, batch)
            found.append(float(metrics["loss"]))
    return found


def whole(leaf: np.ndarray | jax.ShapeDtypeStruct, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """A value that every process has, or zeros, where it belongs."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        leaf = np.zeros(leaf.shape, leaf.dtype)
    return jax.make_array_from_callback(shape.shape, shape.sharding, lambda i: np.asarray(leaf)[i])


def main() -> None:
    """All meshes, one after the other."""
    start(find_process_info("", None, None, os.environ), Timeouts(heartbeat=20))
    with open(sys.argv[1], encoding="utf-8") as file:
        found = {name: losses(sizes) for name, sizes in json.load(file).items()}
    if is_primary():
        print(json.dumps(found))


if __name__ == "__main__":
    main()
