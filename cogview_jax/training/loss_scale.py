"""The dynamic loss scale: gradients kept within what float16 can hold.

The loss is multiplied by a scale before the backward pass and the gradients divided by it after. A
step whose gradients overflow is undone, all of it but the scale, which falls; while nothing
overflows it rises. The rule is the release's (its `DynamicLossScaler`), hysteresis included.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError

#: What the scale is multiplied or divided by when it moves.
FACTOR = 2.0


@dataclass(frozen=True)
class LossScaleConfig:
    """The dynamic loss scale; used only with float16 policies.

    Attributes:
        initial: the scale before the first step (the release starts from 2^32, which costs about
            twenty skipped steps).
        window: steps without overflow after which the scale doubles.
        minimum: the floor of the scale.
        hysteresis: how many overflows it takes until the scale falls. They are counted until the
            scale next rises.
        consecutive_hysteresis: count overflows only until the next step without one.
        patience: a run stops that has overflowed in so many steps with its scale at the floor.
    """

    initial: float = 65536.0
    window: int = 1000
    minimum: float = 1.0
    hysteresis: int = 2
    consecutive_hysteresis: bool = False
    patience: int = 100

    def __post_init__(self) -> None:
        require_range(self, "initial", "minimum", above=0, at_most=2.0**126)
        require_range(self, "window", "hysteresis", "patience", at_least=1)
        if self.minimum > self.initial:
            raise InputError(
                f"loss_scale minimum {self.minimum} and initial {self.initial}: expected a minimum"
                " of at most initial"
            )


class LossScale(NamedTuple):
    """The state of the rule, scalars: it alone survives a step that overflowed.

    scale float32; the rest int32. hysteresis: overflows left until the scale falls. steps: how many
    were tried, skipped ones included, which is the place in the data. last_overflow: the step that
    overflowed last, -1 before any. at_floor: how many steps have overflowed with the scale at its
    floor, since it last rose.
    """

    scale: jax.Array
    hysteresis: jax.Array
    steps: jax.Array
    last_overflow: jax.Array
    at_floor: jax.Array


def initial_loss_scale(config: LossScaleConfig) -> LossScale:
    """The state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return LossScale(jnp.float32(config.initial), zero + config.hysteresis, zero, zero - 1, zero)


def overflows(gradients: Any) -> jax.Array:
    """Whether some gradient's sum in float32 is not finite: a bool scalar.

    Finite values whose sum overflows count too, as in the release.
    """
    sums = [jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(gradients)]
    return ~jnp.isfinite(jnp.stack(sums)).all()


def update(config: LossScaleConfig, state: LossScale, overflow: jax.Array) -> LossScale:
    """The state after a step that did or did not overflow.

    An overflow first uses up the hysteresis, then divides the scale, not below the minimum. The
    scale is multiplied after every `window` steps counted from the last overflow, and the
    hysteresis refilled.
    """
    rises = ~overflow & ((state.steps - state.last_overflow) % config.window == 0)
    falls = overflow & (state.hysteresis == 1)
    refilled = rises if not config.consecutive_hysteresis else ~overflow
    scale = jnp.where(falls, jnp.maximum(state.scale / FACTOR, config.minimum), state.scale)
    scale = jnp.where(rises, state.scale * FACTOR, scale)
    hysteresis = jnp.where(overflow & ~falls, state.hysteresis - 1, state.hysteresis)
    return LossScale(
        scale,
        jnp.where(refilled, config.hysteresis, hysteresis).astype(jnp.int32),
        state.steps + 1,
        jnp.where(overflow, state.steps, state.last_overflow),
        jnp.where(scale <= config.minimum, state.at_floor + overflow, 0).astype(jnp.int32),
    )
