"""AdamW with the paper's schedule and decay mask."""

from dataclasses import dataclass
from typing import Any

import jax
import optax

from cogview_jax.runtime.errors import InputError

#: Parameters that are not decayed: LayerNorm's and every bias (the official grouping).
UNDECAYED = ("scale", "bias")


@dataclass(frozen=True)
class OptimizerConfig:
    """The defaults are the paper's (stage 2).

    warmup: share of the steps over which the rate rises linearly from 0. floor: the rate at the end
    of the cosine, as a share of the peak `lr`. clip: largest norm of the whole gradient.
    """

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 4e-2
    warmup: float = 0.02
    floor: float = 0.1
    clip: float = 1.0

    def __post_init__(self):
        if self.lr <= 0 or self.clip <= 0:
            raise InputError(f"optimizer lr {self.lr} and clip {self.clip}: both are above 0")
        if not (0 <= self.warmup < 1 and 0 <= self.floor <= 1):
            raise InputError(
                f"optimizer warmup {self.warmup} and floor {self.floor}: both are shares between 0"
                " and 1"
            )


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate over a run of `steps`: linear warm-up from 0, then a cosine to floor x lr."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.lr,
        warmup_steps=min(round(config.warmup * steps), steps - 1),
        decay_steps=steps,
        end_value=config.floor * config.lr,
    )


def decay_mask(params: Any) -> Any:
    """True for every parameter that is decayed: all but LayerNorms and biases."""

    def decayed(path: tuple, _: Any) -> bool:
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
