"""States of a few numbers, and what becomes of them on disk."""

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.checkpoints.retention import Retention
from cogview_jax.training.state import TrainState


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


SMALL = {"kernel": (8, 4), "bias": (4,)}


def small(step):
    """A state of a few numbers, other ones at every step."""
    rng = np.random.default_rng(step)
    params = {n: jnp.asarray(rng.standard_normal(s, np.float32)) for n, s in SMALL.items()}
    moments = jax.tree.map(lambda leaf: leaf * 2, params)
    return TrainState(jnp.int32(step), params, (moments, jnp.int32(step)), {"codes": moments})


def saved(directory, *steps, retention=Retention(9)):
    with Checkpointer(directory, retention) as checkpointer:
        for step in steps:
            checkpointer.save(step, small(step))
            assert checkpointer.wait()
    return directory


def restored(directory):
    """What a new process finds."""
    with Checkpointer(directory) as checkpointer:
        return checkpointer.restore(shapes_of(small(0)))


def shapes_of(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def large(step):
    """4 MB that cannot be compressed by much."""
    rng = np.random.default_rng(step)
    return TrainState(
        jnp.int32(step), {"kernel": jnp.asarray(rng.standard_normal(2**20, np.float32))}, (), ()
    )
