"""What a training step takes of each device, found without taking it.

The step is traced, partitioned and compiled for the mesh from shapes alone. What the state takes is
exact, and so are the activations, of whatever types the model keeps them in, and the arithmetic. The
program is the CPU's: how a backend schedules, fuses and orders differs, so temporaries are an
estimate.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from cogview_jax.runtime.collectives import Collective, collectives
from cogview_jax.runtime.flops import function_flops
from cogview_jax.runtime.sharding import spec
from cogview_jax.training.loss_scale import LossScaleConfig
from cogview_jax.training.objective import Objective
from cogview_jax.training.state import TrainState, state_shapes
from cogview_jax.training.step import Batch, make_step


@dataclass(frozen=True)
class Plan:
    """Bytes of one device, and what all devices do in a step.

    parameters, moments: float32 as they are trained; a codebook and a loss scale count with the
    moments. gradients: of one part of the batch, and their sum over the parts if there are several.
    activations: what the forward pass of one part leaves for its backward pass. working: the most
    that is needed besides at any moment of a part, such as the scores and hidden activations of one
    layer that is computed again, or the logits; planned for a CPU, in float32. batch: the rows.
    """

    devices: int
    parameters: int
    moments: int
    gradients: int
    activations: int
    working: int
    batch: int
    collectives: tuple[Collective, ...]
    flops: float
    model_flops: float
    seconds: float

    @property
    def total(self) -> int:
        """An estimate of the most bytes a device holds at a time."""
        parts = (self.parameters, self.moments, self.gradients, self.activations)
        return sum(parts) + self.working + self.batch

    @property
    def recomputed(self) -> float:
        """The share of the arithmetic that rematerialisation adds."""
        return max(0.0, 1 - self.model_flops / self.flops)


def make_plan(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    mesh: Mesh,
    row_shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    global_batch: int,
    accumulate: int = 1,
    loss_scale: LossScaleConfig | None = None,
) -> Plan:
    """Compiles the step for `mesh` and measures it; no array is made.

    Args:
        objective, optimizer, rate, accumulate, loss_scale: see `make_step`.
        mesh: of devices that need not be of the kind meant.
        row_shapes: the fields of one row of a batch.
        global_batch: rows of a step.
    """
    began = time.monotonic()
    with jax.set_mesh(mesh):
        state = state_shapes(objective, optimizer, mesh, loss_scale)
        batch = _rows(row_shapes, global_batch, mesh)
        step = make_step(
            objective, optimizer, rate, seed=0, accumulate=accumulate, loss_scale=loss_scale
        )
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        part = _rows(row_shapes, global_batch // accumulate, mesh)
        forward = jax.jit(_residuals(objective)).lower(state, part).compile()
        flops = function_flops(step, state, batch)
    memory = compiled.memory_analysis()
    gradients = _held(state.params) * (1 if accumulate == 1 else 2)
    activations = forward.memory_analysis().output_size_in_bytes
    return Plan(
        devices=mesh.size,
        parameters=_held(state.params),
        moments=_held((state.opt_state, state.extras, state.loss_scale)),
        gradients=gradients,
        activations=activations,
        working=max(0, memory.temp_size_in_bytes - gradients - activations),
        batch=_held(batch),
        collectives=tuple(collectives(compiled.as_text())),
        flops=flops,
        model_flops=objective.flops_per_row * global_batch,
        seconds=time.monotonic() - began,
    )


def _rows(
    shapes: Mapping[str, jax.ShapeDtypeStruct], rows: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = ("batch",) + (None,) * len(leaf.shape)
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        # A part that cannot be shared is computed by every device.
        sharding = NamedSharding(mesh, spec(names if rows % ways == 0 else (None,) * len(names)))
        return jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype, sharding=sharding)

    return {name: place(leaf) for name, leaf in shapes.items()}


def _residuals(objective: Objective) -> Callable[[TrainState, Batch], list[Any]]:
    """A function that gives what the forward pass of a part leaves for the backward pass."""

    def forward(state: TrainState, part: Batch) -> list[Any]:
        rows = jax.tree.leaves(part)[0].shape[0]
        batch = {**part, "row": jax.numpy.arange(rows)}

        def loss(params: Any) -> jax.Array:
            return objective.terms(params, state.extras, batch, jax.random.key(0)).loss

        _, pullback = jax.vjp(loss, state.params)
        given = {id(leaf) for leaf in jax.tree.leaves((state, part))}
        return [leaf for leaf in jax.tree.leaves(pullback) if id(leaf) not in given]

    return forward


def _held(tree: Any) -> int:
    """Bytes of a tree that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
