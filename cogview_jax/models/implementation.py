"""The choice of the programs that compute attention and decode; it is made once for a model.

All programs compute the same function up to rounding. The device, the types of the arithmetic and
the sizes of the model decide which of them is fastest and which can run at all.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.kernels.cached_attention import runs_cached_attention
from cogview_jax.models.kernels.fused_attention import Device, FusedKernel, fused_kernel
from cogview_jax.models.kernels.token_step import runs_token_step
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import Policy


@dataclass(frozen=True)
class ImplementationConfig:
    """The programs that a config asks for.

    Attributes:
        attention: the program for dense attention of whole sequences. "xla" writes all scores to
            memory. "blocks" computes them block by block and leaves out most of what the causal
            mask hides (`kernels.block_attention`). "cudnn" on GPUs and "splash" on TPUs are fused
            kernels; they cannot drop weights, so training that does runs "blocks"
            (`kernels.fused_attention`). "auto" takes a fused kernel where the device has one, and
            else "blocks".
        decoding: the program for one new token a row. "layers" runs one layer after the other.
            "cache_kernel" reads only the filled part of the cache (`kernels.cached_attention`).
            "token_step" runs whole layers as kernels for up to 16 rows (`kernels.token_step`), and
            cache_kernel for more rows; it reads no kernels in 8 bits. "auto" takes the fastest that
            the device can run.
    """

    attention: Literal["auto", "xla", "blocks", "cudnn", "splash"] = "auto"
    decoding: Literal["auto", "layers", "cache_kernel", "token_step"] = "auto"


@dataclass(frozen=True)
class Implementation:
    """The programs that run.

    Attributes:
        attention: "xla", "blocks", "cudnn" or "splash"; see `ImplementationConfig`.
        decoding: "layers", "cache_kernel" or "token_step"; see `ImplementationConfig`.
        platform: the platform that the programs are for: "cpu", "gpu" or "tpu", or "any" for
            programs that are the same on every platform.
        interpret: whether kernels run as operations of XLA, which is slow but works on any
            platform.
        int8_cache: whether keys and values are cached in 8 bits (`models.quantized_cache`).
    """

    attention: str
    decoding: str
    platform: str
    interpret: bool = False
    int8_cache: bool = False

    @property
    def fused(self) -> bool:
        """Whether attention is a fused kernel, which cannot drop weights."""
        return self.attention in get_args(FusedKernel)


def choose_implementation(
    config: TransformerConfig,
    policy: Policy,
    wanted: ImplementationConfig | None = None,
    *,
    devices: int = 1,
    device: Device | None = None,
) -> Implementation:
    """Returns the programs that `wanted` asks for.

    Args:
        config: the sizes of the model.
        policy: the types of its arithmetic.
        wanted: the programs that the config asks for; None asks for the fastest.
        devices: the number of devices over which the parameters are split while the model decodes.
        device: one of the devices that the programs are for; None means jax's first device.

    Raises:
        InputError: the device cannot run what is asked for. The message names what it can run.
    """
    device = jax.devices()[0] if device is None else device
    wanted = wanted or ImplementationConfig()
    kernel = None
    if not config.sparse and policy.reductions == jnp.float32:
        kernel = fused_kernel(device, policy.compute, config.head_width)
    cached = kernel == "cudnn" and devices == 1 and runs_cached_attention(config.head_width)
    attention = ["xla", "blocks", *([kernel] if kernel else [])]
    decoding = ["layers", *["cache_kernel"] * cached]
    whole_layers = cached and not policy.int8_kernels and runs_token_step(config.width)
    decoding += ["token_step"] * whole_layers
    return Implementation(
        _resolve("attention", wanted.attention, attention, device, policy),
        _resolve("decoding", wanted.decoding, decoding, device, policy),
        device.platform,
        int8_cache=policy.int8_kernels and device.platform == "cpu" and not config.sparse,
    )


def _resolve(name: str, wanted: str, choices: list[str], device: Device, policy: Policy) -> str:
    """Returns `wanted`, or the last of the choices for "auto"."""
    if wanted == "auto":
        return choices[-1]
    if wanted not in choices:
        raise InputError(
            f"implementation.{name} {wanted!r} cannot run this model in {policy.name} on"
            f" {device.device_kind}: choose from auto, {', '.join(choices)}"
        )
    return wanted
