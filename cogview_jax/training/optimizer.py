"""AdamW with the paper's schedule and decay mask, and the schedules of the release."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError

#: Parameters that are not decayed: LayerNorm's and every bias (the official grouping).
UNDECAYED = ("scale", "bias")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; the defaults are the paper's (stage 2).

    Attributes:
        lr: the peak learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: of all parameters but biases and the scales of LayerNorm.
        warmup: share of the steps over which the rate rises linearly from 0.
        floor: the rate at the end of a cosine, as a share of the peak `lr`.
        clip: largest norm of the whole gradient.
        schedule: how the rate falls: a name in `SCHEDULES`.
    """

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 4e-2
    warmup: float = 0.02
    floor: float = 0.1
    clip: float = 1.0
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"optimizer schedule {self.schedule!r}: choose from {', '.join(SCHEDULES)}"
            )
        require_range(self, "lr", "clip", above=0)
        require_range(self, "beta1", "beta2", "warmup", at_least=0, below=1)
        # Smaller ones are 0 in float32, and where a gradient is 0 the update is not a number.
        require_range(self, "epsilon", at_least=1e-30)
        require_range(self, "weight_decay", at_least=0)
        require_range(self, "floor", at_least=0, at_most=1)


def cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine that has reached floor x lr after `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.lr,
        warmup_steps=min(round(config.warmup * steps), steps - 1),
        decay_steps=steps,
        end_value=config.floor * config.lr,
    )


def official_cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The release's cosine: it starts after the warm-up, and so ends as much after `steps`."""

    def share(progress: Any, xp: Any) -> Any:
        wave = (1 + xp.cos(np.pi * xp.minimum(progress, 1))) / 2
        return config.floor + (1 - config.floor) * wave

    return _after_warmup(config, steps, share)


def official_linear(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The release's line to 0, at `steps` and the warm-up; beyond it is below 0.

    No run gets there: its last step is before `steps`. `floor` has no part in it.
    """
    return _after_warmup(config, steps, lambda progress, xp: 1 - progress)


def constant(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The rate of the end of the warm-up, ever after.

    The release has it under this name, and under "exponential" too.
    """
    return _after_warmup(config, steps, lambda progress, xp: xp.ones_like(progress))


SCHEDULES: dict[str, Callable[[OptimizerConfig, int], optax.Schedule]] = {
    "cosine": cosine,
    "official_cosine": official_cosine,
    "official_linear": official_linear,
    "constant": constant,
}


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate over a run of `steps`, by the name in `config.schedule`.

    All rise linearly from 0, so that the first step of a run with a warm-up has rate 0. The
    official ones and the constant give numpy's float64 for a number, and jax's type for an array.
    """
    return SCHEDULES[config.schedule](config, steps)


def _after_warmup(
    config: OptimizerConfig, steps: int, share: Callable[[Any, Any], Any]
) -> optax.Schedule:
    """lr x share(progress), where progress is (step - warm-up) / steps; before, a linear rise.

    The warm-up need not be a whole number of steps, and lasts while step <= warm-up (the release).
    """
    warmup = config.warmup * steps

    def rate(count: Any) -> Any:
        xp = jnp if isinstance(count, jax.Array) else np
        falling = share((count - warmup) / steps, xp)
        if not warmup:
            return config.lr * falling
        return config.lr * xp.where(count <= warmup, count / warmup, falling)

    return rate


def decay_mask(params: Any) -> Any:
    """True for every parameter that is decayed: all but LayerNorms and biases."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return names[-1] not in UNDECAYED

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW on the schedule of a run of `steps`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
