"""The memory, traffic and arithmetic of a training step, found without running it.

The step is traced, partitioned and compiled for the mesh from shapes alone. The memory of the state
and the arithmetic are exact. The rest is an estimate, and rather too high: the program is compiled
for CPUs, whose backend keeps arrays that others fuse away, and widens 16-bit numbers to 32 bits.
"""

import copy
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
from cogview_jax.training.lora_objective import LoRAObjective
from cogview_jax.training.loss_scale import LossScaleConfig
from cogview_jax.training.objective import Objective
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import TrainState, state_shapes
from cogview_jax.training.step import make_step


@dataclass(frozen=True)
class Plan:
    """Memory of one device in bytes, and what all devices send and compute in a step.

    Attributes:
        mesh: the sizes of its axes.
        parameters: in float32, as they are trained.
        frozen: the parameters that adapters are trained beside, in their own type; 0 without LoRA.
        moments: of the optimizer, with the model state, the loss scale and the average of the
            parameters.
        gradients: of one part of the batch; twice that if gradients of several parts are summed.
        activations: what the forward pass of one part keeps for its backward pass.
        temporaries: what else the compiled step holds at its peak, such as attention scores of a
            layer that is recomputed, and gathered weights.
        batch: the rows.
        collectives: the operations between devices.
        flops: of a step, over all devices.
        model_flops: the same without rematerialisation.
        seconds: how long it took to make the plan.
    """

    mesh: Mapping[str, int]
    parameters: int
    frozen: int
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
        """The number of devices."""
        return math.prod(self.mesh.values())

    @property
    def total(self) -> int:
        """An estimate of the most bytes a device holds at a time."""
        return self.state + self.activations + self.temporaries + self.batch

    @property
    def state(self) -> int:
        """The bytes that do not depend on the batch: the state and the gradients."""
        return self.parameters + self.frozen + self.moments + self.gradients

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a step."""
        return sum(one.sent for one in self.collectives)

    @property
    def recomputed(self) -> float:
        """The share of the arithmetic that is rematerialisation."""
        return max(0.0, 1 - self.model_flops / self.flops)


def make_plan(
    objective: Objective[Any],
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    mesh: Mesh,
    row_shapes: Any,
    *,
    global_batch: int,
    accumulate: int = 1,
    loss_scale: LossScaleConfig | None = None,
    ema_decay: float = 0.0,
    compute: DTypeLike = jnp.float32,
) -> Plan:
    """Compiles the step for `mesh` and measures it; no array is made.

    Args:
        objective, optimizer, rate, accumulate, loss_scale, ema_decay: see `make_step`.
        mesh: of devices of any kind.
        row_shapes: the shapes of one row of a batch.
        global_batch: rows of a step.
        compute: the type of the model's arithmetic. Gathered weights and summed gradients are
            counted with its width.
    """
    began = time.monotonic()
    with jax.set_mesh(mesh):
        state = state_shapes(objective, optimizer, mesh, loss_scale, ema_decay)
        batch = _rows(row_shapes, global_batch, mesh)
        step, kept = (
            make_step(
                one,
                optimizer,
                rate,
                seed=0,
                accumulate=accumulate,
                loss_scale=loss_scale,
                ema_decay=ema_decay,
            )
            for one in (objective, _without_remat(objective))
        )
        # XLA's CPU backend would widen a frozen model of 16 bits as a whole, for all of the step.
        wide = state.with_values(state.values._replace(model_state=_wide(state.model_state)))
        compiled: Any = jax.jit(step, donate_argnums=0).lower(wide, batch).compile()
        part = _rows(row_shapes, global_batch // accumulate, mesh)
        forward: Any = jax.jit(_kept(objective, wide, part)).lower(wide, part).compile()
        flops, model_flops = (function_flops(each, state, batch) for each in (step, kept))
    memory = compiled.memory_analysis()
    gradients = _held(state.params) * (1 if accumulate == 1 else 2)
    activations = forward.memory_analysis().output_size_in_bytes
    adapting = isinstance(objective, LoRAObjective)
    beside = (state.opt_state, state.loss_scale, state.ema)
    return Plan(
        mesh=dict(mesh.shape),
        parameters=_held(state.params),
        frozen=_held(state.model_state) if adapting else 0,
        moments=_held(beside if adapting else (beside, state.model_state)),
        gradients=gradients,
        activations=activations,
        temporaries=max(0, memory.temp_size_in_bytes - gradients - activations),
        batch=_held(batch),
        collectives=tuple(
            _narrowed(one, jnp.dtype(compute).itemsize) for one in collectives(compiled.as_text())
        ),
        flops=flops,
        model_flops=model_flops,
        seconds=time.monotonic() - began,
    )


def _without_remat(objective: Objective[Any]) -> Objective[Any]:
    """The same objective, whose model keeps what the backward pass needs.

    The formula of the arithmetic counts what the causal mask hides too, which attention in blocks
    leaves out.
    """
    if not isinstance(objective, SequenceObjective):
        return objective
    found, model = copy.copy(objective), objective.model
    found.model = model.clone(config=dataclasses.replace(model.config, remat="none"))
    return found


def _rows(shapes: Any, rows: int, mesh: Mesh) -> Any:
    """The shapes and shardings of a batch of `rows` rows."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = ("batch",) + (None,) * len(leaf.shape)
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        # A part that cannot be shared is computed by every device.
        sharding = NamedSharding(mesh, spec(names if rows % ways == 0 else (None,) * len(names)))
        return jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes)


def _wide(tree: Any) -> Any:
    """The shapes of a tree, at least float32 where they are floating point."""

    def widen(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = jnp.promote_types(leaf.dtype, jnp.float32) if _is_float(leaf) else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    return jax.tree.map(widen, tree)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _kept(
    objective: Objective[Any], state: TrainState, part: Any
) -> Callable[[TrainState, Any], list[Any]]:
    """A function that returns what the forward pass of a part keeps for the backward pass.

    Excludes parameters (counted separately) and broadcast constants (never materialised).
    """

    def forward(state: TrainState, part: Any) -> list[Any]:
        rows = jnp.arange(jax.tree.leaves(part)[0].shape[0])

        def loss(params: Any) -> jax.Array:
            return objective.sums(params, state.model_state, part, rows, random_key(0)).loss

        _, pullback = jax.vjp(loss, state.params)
        given = {id(leaf) for leaf in jax.tree.leaves((state, part))}
        return [leaf for leaf in jax.tree.leaves(pullback) if id(leaf) not in given]

    jaxpr = jax.make_jaxpr(forward)(state, part).jaxpr
    real = [not _is_broadcast(jaxpr, variable) for variable in jaxpr.outvars]

    def kept(state: TrainState, part: Any) -> list[Any]:
        return list(itertools.compress(forward(state, part), real))

    return kept


def _is_broadcast(jaxpr: Any, variable: Any) -> bool:
    """Whether a program makes a variable by broadcasting something smaller."""
    for equation in jaxpr.eqns:
        if variable in equation.outvars:
            if equation.primitive.name == "broadcast_in_dim":
                return True
            inner = equation.params.get("jaxpr")
            if equation.primitive.name in ("pjit", "jit") and inner is not None:
                place = equation.outvars.index(variable)
                return _is_broadcast(inner.jaxpr, inner.jaxpr.outvars[place])
    return False


def _narrowed(one: Collective, itemsize: int) -> Collective:
    """A collective with the bytes that it has on backends that do not widen 16-bit numbers."""
    if one.dtype != "f32":
        return one
    return dataclasses.replace(one, bytes=one.bytes * itemsize // 4)


def _held(tree: Any) -> int:
    """Bytes of a tree that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
