"""Which program computes attention, and which one decodes: a value, chosen once for a model.

All programs compute the same function up to rounding; which of them is fast, or can run at all,
depends on the device, the types of the arithmetic and the sizes of the model.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.kernels.cached_attention import runs_cached_attention
from cogview_jax.models.kernels.fused_attention import runs_fused_attention
from cogview_jax.models.kernels.token_step import runs_token_step
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import Policy


@dataclass(frozen=True)
class ImplementationConfig:
    """Which programs a config asks for.

    Attributes:
        attention: of whole sequences: "xla" writes scores to memory, "cudnn" is a fused kernel,
            which cannot drop weights (`kernels.fused_attention`), "auto" takes the fastest that the
            device can run.
        decoding: of one new token a row: "layers" runs layer after layer, "cache_kernel" reads only
            the filled part of the cache (`kernels.cached_attention`), "token_step" runs whole
            layers as kernels for up to 16 rows, and cache_kernel for more (`kernels.token_step`),
            "auto" takes the fastest that the device can run.
    """

    attention: Literal["auto", "xla", "cudnn"] = "auto"
    decoding: Literal["auto", "layers", "cache_kernel", "token_step"] = "auto"


@dataclass(frozen=True)
class Implementation:
    """Which programs run.

    Attributes:
        attention: "xla" or "cudnn", see `ImplementationConfig`.
        decoding: "layers", "cache_kernel" or "token_step", see `ImplementationConfig`.
        platform: what the programs are for: "cpu", "gpu" or "tpu".
        interpret: kernels run slowly in XLA's operations, on any platform.
    """

    attention: str
    decoding: str
    platform: str
    interpret: bool = False


def choose(
    config: TransformerConfig,
    policy: Policy,
    wanted: ImplementationConfig | None = None,
    *,
    devices: int = 1,
    device: jax.Device | None = None,
) -> Implementation:
    """The programs that `wanted` asks for.

    Args:
        config: sizes of the model.
        policy: types of its arithmetic.
        wanted: what the config asks for; None for the fastest.
        devices: over how many devices the parameters are split while the model decodes.
        device: one of those that the programs are for; None for jax's first.

    Raises:
        InputError: the device cannot run what is asked for; the message names what it can run.
    """
    device = jax.devices()[0] if device is None else device
    wanted = wanted or ImplementationConfig()
    fused = (
        not config.sparse
        and policy.reductions == jnp.float32
        and runs_fused_attention(device, policy.compute, config.head_width)
    )
    cached = fused and devices == 1 and runs_cached_attention(config.head_width)
    attention = ["xla", *["cudnn"] * fused]
    decoding = ["layers", *["cache_kernel"] * cached]
    decoding += ["token_step"] * (cached and runs_token_step(config.width))
    return Implementation(
        _chosen("attention", wanted.attention, attention, device, policy),
        _chosen("decoding", wanted.decoding, decoding, device, policy),
        device.platform,
    )


def _chosen(name: str, wanted: str, choices: list[str], device: jax.Device, policy: Policy) -> str:
    """`wanted`, or the last choice for "auto"."""
    if wanted == "auto":
        return choices[-1]
    if wanted not in choices:
        raise InputError(
            f"implementation.{name} {wanted!r} cannot run this model in {policy.name} on"
            f" {device.device_kind}: choose from auto, {', '.join(choices)}"
        )
    return wanted
