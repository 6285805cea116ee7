"""What the plan says of a step, held against a step that is really there."""

import dataclasses
import gc

import jax
import numpy as np
import pytest

import tiny
from cogview_jax.dry_run.plan import make_plan
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.sequence_objective import training_flops
from cogview_jax.training.state import make_state, state_shapes

OPTIMIZER, RATE = (make(tiny.OPTIMIZER, 10) for make in (make_optimizer, schedule))
ROW = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tiny.sequences(0))


def plan(mesh, *, rows=tiny.BATCH, accumulate=1, remat="none", **changes):
    config = dataclasses.replace(tiny.TRANSFORMER, remat=remat)
    return make_plan(
        tiny.transformer_objective(config),
        OPTIMIZER,
        RATE,
        mesh,
        ROW,
        global_batch=rows,
        accumulate=accumulate,
        **changes,
    )


def on_first_device(tree):
    """Bytes of a tree that device 0 holds."""
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def mixed(mesh):
    gc.collect()  # what other tests left in cycles may go at any time
    before = len(jax.live_arrays())
    found = plan(mesh)
    assert len(jax.live_arrays()) == before
    return found


def test_the_state_is_what_a_device_really_holds(mixed, mesh):
    objective = tiny.transformer_objective()
    with jax.set_mesh(mesh):
        shapes = state_shapes(objective, OPTIMIZER, mesh)
        state = make_state(objective, OPTIMIZER, shapes, seed=0)
    assert mixed.parameters == on_first_device(state.params)
    assert mixed.moments == on_first_device(state.opt_state)
    assert mixed.gradients == mixed.parameters
    # Eight devices in four groups of rows.
    row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(ROW))
    assert mixed.batch == tiny.BATCH // 4 * row


def test_arithmetic_is_that_of_the_formula(mixed):
    formula = tiny.transformer_objective().flops_per_row * tiny.BATCH
    # One of the products of attention in blocks is computed twice.
    assert mixed.flops == mixed.model_flops == pytest.approx(formula, rel=0.01)
    assert mixed.recomputed == 0


def test_what_attention_in_blocks_leaves_out_hides_no_rematerialisation():
    """Of a row of 1,000 tokens attention is most of the arithmetic, half of which is left out."""
    alone = make_mesh(MeshConfig(), jax.devices()[:1])
    config = dataclasses.replace(tiny.TRANSFORMER, layers=1, remat="full")
    objective = tiny.transformer_objective(config)
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1000,), x.dtype), ROW)
    found = make_plan(objective, OPTIMIZER, RATE, alone, row, global_batch=1)
    assert found.model_flops < 0.8 * training_flops(objective.model, 1000)
    assert 0.15 < found.recomputed < 0.3


def test_activations_grow_with_the_rows_and_shrink_with_what_is_kept():
    """One device, so that nothing is rounded to the mesh."""
    alone = make_mesh(MeshConfig(), jax.devices()[:1])
    small, large, cut, full = (
        plan(alone, rows=8),
        plan(alone, rows=16),
        plan(alone, rows=16, accumulate=2),
        plan(alone, rows=16, remat="full"),
    )
    # The causal mask and a few biases are there once.
    assert large.activations == pytest.approx(2 * small.activations, rel=0.02)
    # A part of an accumulated batch is a small batch.
    assert cut.activations == small.activations
    assert cut.gradients == 2 * small.gradients
    assert full.activations < large.activations / 2
    assert full.recomputed == pytest.approx(1 - full.model_flops / full.flops)
    assert 0.1 < full.recomputed < 0.3
    assert alone.size == 1
    assert small.collectives == ()


def test_gradients_of_a_copied_model_are_reduced_once(mesh):
    """What data parallelism sends is all gradients, both ways around the ring.

    The word embeddings have two: as a table that is looked up, and as the head.
    """
    copies = plan(make_mesh(MeshConfig(data=8)), rows=8)
    reduced = sum(one.sent for one in copies.collectives if one.kind == "all-reduce")
    table = 4 * tiny.VOCABULARY.size * tiny.TRANSFORMER.width
    assert reduced == pytest.approx(2 * 7 / 8 * (copies.parameters + table), rel=0.001)


def test_half_precision_travels_in_half_the_bytes(mesh, mixed):
    half = plan(mesh, compute=np.float16)
    assert half.sent == pytest.approx(mixed.sent / 2, rel=0.01)
