"""One process of a run that saves and restores: two launches, made by test_processes.py.

    python saving_process.py DIRECTORY SCENE

Its last line is what it found, a JSON object.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.checkpoints.retention import Retention
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.processes import Timeouts, find_process_info, start
from cogview_jax.training.state import TrainState

#: Item and name -> size, and the mesh axes that split it.
ARRAYS = {
    ("params", "kernel"): ((256, 64), ("fsdp", "tensor")),
    ("params", "bias"): ((64,), ()),
    ("opt_state", "moment"): ((1024, 512), (("data", "fsdp"),)),
    ("opt_state", "count"): ((), ()),
    ("model_state", "codes"): ((16, 8), (None, "tensor")),
}
#: Seconds: what nothing of this takes, and after how many a peer counts as dead.
PATIENCE, TIMEOUT = 300, 8


def numbers(step, place):
    """What an array holds at a step."""
    rng = np.random.default_rng([step, *map(ord, "".join(place))])
    return rng.standard_normal(ARRAYS[place][0]).astype(np.float32)


def tree(mesh, make):
    """A state of what `make(place, sharding)` gives."""
    items = {"params": {}, "opt_state": {}, "model_state": {}}
    for (item, name), (_, axes) in ARRAYS.items():
        items[item][name] = make((item, name), NamedSharding(mesh, PartitionSpec(*axes)))
    return items


def state(mesh, step):
    def make(place, sharding):
        whole = numbers(step, place)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return TrainState(jnp.int32(step), **tree(mesh, make))


def shapes(mesh):
    def make(place, sharding):
        return jax.ShapeDtypeStruct(ARRAYS[place][0], np.float32, sharding=sharding)

    step = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    return TrainState(step, **tree(mesh, make))


def step_of(mesh, found):
    """The step of a state, once every bit that lies here is what it was then."""
    step = int(found.step)
    for item, name in ARRAYS:
        array, whole = getattr(found, item)[name], numbers(step, (item, name))
        assert array.sharding == getattr(shapes(mesh), item)[name].sharding
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index])
    return step


def save(checkpointer, mesh, step):
    """Whether it was saved, and how long that took."""
    began = time.monotonic()
    checkpointer.save(step, state(mesh, step))
    return checkpointer.wait(), time.monotonic() - began


def first(directory):
    """4 x 2 devices: a disk that fails under one process, and a process that dies."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    checkpointer = Checkpointer(directory, Retention(2), timeout=PATIENCE)
    yield "nothing", checkpointer.restore(shapes(mesh)) is None
    yield "saved", save(checkpointer, mesh, 3)
    if jax.process_index() == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    yield "disk", save(checkpointer, mesh, 6)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    yield "room", save(checkpointer, mesh, 7)
    yield "restored", step_of(mesh, checkpointer.restore(shapes(mesh)))
    began = time.monotonic()
    checkpointer = Checkpointer(directory, Retention(2), timeout=TIMEOUT)
    checkpointer.save(9, state(mesh, 9))
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    yield "death", (checkpointer.wait(), time.monotonic() - began)


def second(directory):
    """2 x 4 devices: what the first left, one file of it damaged since."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with Checkpointer(directory, Retention(2), timeout=PATIENCE) as checkpointer:
        yield "restored", step_of(mesh, checkpointer.restore(shapes(mesh)))
        yield "again", save(checkpointer, mesh, 7)
        yield "there", save(checkpointer, mesh, 7)
        yield "older", step_of(mesh, checkpointer.restore(shapes(mesh), choices=[3]))


if __name__ == "__main__":
    folder, scene = sys.argv[1:]
    start(find_process_info("", None, None, os.environ), Timeouts(heartbeat=PATIENCE))
    print(json.dumps(dict({"first": first, "second": second}[scene](Path(folder)))), flush=True)
    if scene == "first":
        os._exit(0)  # a peer is dead: nobody is to be waited for
