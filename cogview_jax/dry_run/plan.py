"""What a training step takes of each device, found without taking it.

The step is traced, partitioned and compiled for the mesh from shapes alone. What the state takes
and the arithmetic are exact. The rest is an estimate, and rather too high: the program is compiled
for CPUs, whose backend keeps what others fuse away, and widens 16-bit numbers to 32 bits.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from cogview_jax.dry_run.collectives import Collective, collectives
from cogview_jax.dry_run.flops import function_flops
from cogview_jax.runtime.random_key import random_key
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
    activations: what the forward pass of one part leaves for its backward pass. temporaries: what
    the compiled step needs besides at its fullest moment, such as the scores of a layer that is
    computed again and gathered weights. batch: the rows. flops, model_flops: with and without what
    rematerialisation adds. seconds: what finding this out took.
    """

    mesh: Mapping[str, int]
    parameters: int
    moments: int
    gradients: int
    activations: int
    temporaries: int
    batch: int
    collectives: tuple[Collective, ...]
    flops: float
    model_flops: float
    seconds: float

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.mesh.values())

    @property
    def total(self) -> int:
        """An estimate of the most bytes a device holds at a time."""
        parts = (self.parameters, self.moments, self.gradients, self.activations)
        return sum(parts) + self.temporaries + self.batch

    @property
    def sent(self) -> float:
        """Bytes that one device sends a step."""
        return sum(one.sent for one in self.collectives)

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
    compute: DTypeLike = jnp.float32,
) -> Plan:
    """Compiles the step for `mesh` and measures it; no array is made.

    Args:
        objective, optimizer, rate, accumulate, loss_scale: see `make_step`.
        mesh: of devices that need not be of the kind meant.
        row_shapes: the fields of one row of a batch.
        global_batch: rows of a step.
        compute: the type of the model's arithmetic. What travels in it, weights that are gathered
            and gradients that are summed, is counted with its width.
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
        forward = jax.jit(_kept(objective, state, part)).lower(state, part).compile()
        flops = function_flops(step, state, batch)
    memory = compiled.memory_analysis()
    gradients = _held(state.params) * (1 if accumulate == 1 else 2)
    activations = forward.memory_analysis().output_size_in_bytes
    return Plan(
        mesh=dict(mesh.shape),
        parameters=_held(state.params),
        moments=_held((state.opt_state, state.extras, state.loss_scale)),
        gradients=gradients,
        activations=activations,
        temporaries=max(0, memory.temp_size_in_bytes - gradients - activations),
        batch=_held(batch),
        collectives=tuple(
            _narrowed(one, jnp.dtype(compute).itemsize) for one in collectives(compiled.as_text())
        ),
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


def _kept(
    objective: Objective, state: TrainState, part: Batch
) -> Callable[[TrainState, Batch], list[Any]]:
    """A function that gives what the forward pass of a part leaves for the backward pass.

    Without the parameters, which are there anyway, and without constants spread over an array,
    which nobody keeps as an array.
    """

    def forward(state: TrainState, part: Batch) -> list[Any]:
        rows = jax.tree.leaves(part)[0].shape[0]
        batch = {**part, "row": jnp.arange(rows)}

        def loss(params: Any) -> jax.Array:
            return objective.terms(params, state.extras, batch, random_key(0)).loss

        _, pullback = jax.vjp(loss, state.params)
        given = {id(leaf) for leaf in jax.tree.leaves((state, part))}
        return [leaf for leaf in jax.tree.leaves(pullback) if id(leaf) not in given]

    jaxpr = jax.make_jaxpr(forward)(state, part).jaxpr
    real = [not _spread(jaxpr, variable) for variable in jaxpr.outvars]

    def kept(state: TrainState, part: Batch) -> list[Any]:
        return list(itertools.compress(forward(state, part), real))

    return kept


def _spread(jaxpr: Any, variable: Any) -> bool:
    """Whether a program makes a variable by spreading something smaller."""
    for equation in jaxpr.eqns:
        if variable in equation.outvars:
            if equation.primitive.name == "broadcast_in_dim":
                return True
            inner = equation.params.get("jaxpr")
            if equation.primitive.name in ("pjit", "jit") and inner is not None:
                place = equation.outvars.index(variable)
                return _spread(inner.jaxpr, inner.jaxpr.outvars[place])
    return False


def _narrowed(one: Collective, itemsize: int) -> Collective:
    """A collective with the width it has where the backend does not widen 16-bit numbers."""
    if one.dtype != "f32":
        return one
    return dataclasses.replace(one, bytes=one.bytes * itemsize // 4)


def _held(tree: Any) -> int:
    """Bytes of a tree that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
