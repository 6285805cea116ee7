"""AdamW, with Muon beside it or without, and the schedules of the paper and of the release."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.training.muon import scale_by_muon

#: Parameters that are not decayed: those of LayerNorm and all biases, as in the release.
UNDECAYED = ("scale", "bias")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; the defaults are those of the paper's pretraining (arXiv 2105.13290).

    Attributes:
        lr: the peak learning rate.
        muon_lr: the peak learning rate of Muon (arXiv 2502.16982; `training.muon`), which then
            updates the kernels of linear layers and convolutions, with momentum of decay `beta1`.
            AdamW updates everything else, at `lr`: embeddings, biases, norms, a discriminator. 0
            leaves all to AdamW.
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
    muon_lr: float = 0.0
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
        require_range(self, "muon_lr", "weight_decay", at_least=0)
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
    """The cosine of the release: it starts after the warm-up, and ends that much after `steps`."""

    def share(progress: Any, xp: Any) -> Any:
        wave = (1 + xp.cos(np.pi * xp.minimum(progress, 1))) / 2
        return config.floor + (1 - config.floor) * wave

    return _after_warmup(config, steps, share)


def official_linear(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The linear decay of the release, which reaches 0 at `steps` plus the warm-up.

    A run ends before that. `floor` is not used.
    """
    return _after_warmup(config, steps, lambda progress, xp: 1 - progress)


def constant(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The peak rate after the warm-up.

    The release has this schedule under this name and under "exponential".
    """
    return _after_warmup(config, steps, lambda progress, xp: xp.ones_like(progress))


SCHEDULES: dict[str, Callable[[OptimizerConfig, int], optax.Schedule]] = {
    "cosine": cosine,
    "official_cosine": official_cosine,
    "official_linear": official_linear,
    "constant": constant,
}


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by step over a run of `steps`, by the name in `config.schedule`.

    All schedules rise linearly from 0, so that the first step of a run with a warm-up has rate 0.
    For a Python number the official schedules and the constant return numpy's float64, for a jax
    array a jax array.
    """
    return SCHEDULES[config.schedule](config, steps)


def muon_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule | None:
    """The learning rate of Muon, which differs from `schedule` by its peak; None without Muon."""
    return schedule(replace(config, lr=config.muon_lr), steps) if config.muon_lr else None


def _after_warmup(
    config: OptimizerConfig, steps: int, share: Callable[[Any, Any], Any]
) -> optax.Schedule:
    """A linear rise, then lr x share(progress), where progress is (step - warm-up) / steps.

    As in the release, the warm-up need not be a whole number of steps, and includes its last step.
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
    """A tree like `params`: True where weight decay applies, in all but LayerNorms and biases."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return names[-1] not in UNDECAYED

    return jax.tree_util.tree_map_with_path(decayed, params)


def muon_labels(params: Any) -> Any:
    """A tree like `params`: "muon" for kernels but those of a discriminator, else "adamw".

    Raises:
        InputError: there are no such kernels.
    """

    def label(path: tuple[Any, ...], _: Any) -> str:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return "muon" if names[-1] == "kernel" and names[0] != "discriminator" else "adamw"

    labels = jax.tree_util.tree_map_with_path(label, params)
    if "muon" not in jax.tree.leaves(labels):
        raise InputError(
            "optimizer.muon_lr: Muon updates the kernels of linear layers and convolutions, and"
            " this run trains none of them (but adapters, for example); expected 0"
        )
    return labels


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW, or Muon and AdamW, on the schedule of `steps`."""
    rate = schedule(config, steps)
    update = optax.adamw(
        rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if muon_rate := muon_schedule(config, steps):
        muon = optax.chain(
            scale_by_muon(config.beta1),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(muon_rate),
        )
        update = optax.partition({"muon": muon, "adamw": update}, muon_labels)
    return optax.chain(optax.clip_by_global_norm(config.clip), update)
