"""Causal attention as one kernel, which never writes its scores to memory.

The kernel is cuDNN's flash attention (Dao 2023, arXiv 2307.08691), called through `jax.nn`. It
computes scores and softmax in float32 for inputs of any type. Nothing in it overflows, so it does
without the precision relaxation of the paper, which changes no result. It cannot drop weights.

Legend: B batch, T positions, N heads, H head width.
"""

import re
from typing import Literal, Protocol, runtime_checkable

import flax
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

#: The lowest compute capability that has the kernel (Ampere), and the largest head width that the
#: kernel takes on all devices that have it.
MIN_CAPABILITY, MAX_HEAD_WIDTH = 8.0, 128


@flax.struct.dataclass
class Causal:
    """The attention pattern in which a query of a whole sequence sees its own position and earlier.

    It asks for the fused kernel.

    Attributes:
        interpret: whether operations of XLA compute the same function, on any device.
    """

    interpret: bool = flax.struct.field(pytree_node=False, default=False)


@runtime_checkable
class Device(Protocol):
    """The properties of a `jax.Device` that decide which programs it can run.

    NVIDIA GPUs also have a `compute_capability`.
    """

    @property
    def platform(self) -> str:
        """The platform: "cpu", "gpu" or "tpu"."""

    @property
    def device_kind(self) -> str:
        """The name of the hardware."""


def runs_fused_attention(device: Device, dtype: DTypeLike, head_width: int) -> bool:
    """Returns whether `device` can run the kernel on numbers of `dtype`."""
    if device.platform != "gpu" or jnp.dtype(dtype).itemsize != 2:
        return False
    # NVIDIA's capabilities are like "9.0", and AMD's are like "gfx942".
    capability = str(getattr(device, "compute_capability", ""))
    recent = re.fullmatch(r"\d+\.\d+", capability) and float(capability) >= MIN_CAPABILITY
    return bool(recent) and head_width % 8 == 0 and head_width <= MAX_HEAD_WIDTH


def fused_attention(
    queries: Float[Array, "B N T H"],
    keys: Float[Array, "B N T H"],
    values: Float[Array, "B N T H"],
    pattern: Causal,
) -> Float[Array, "B T N H"]:
    """Computes softmax(Q K^T / sqrt H) V, where a query sees its own position and earlier."""
    kernel: Literal["xla", "cudnn"] = "xla" if pattern.interpret else "cudnn"
    length = queries.shape[2]
    # The backward pass of the kernel takes even lengths only. No query sees the padding at the end.
    padding = ((0, 0), (0, length % 2), (0, 0), (0, 0))
    q, k, v = (
        jnp.pad(rearrange(x, "b n t h -> b t n h"), padding) for x in (queries, keys, values)
    )
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kernel)
    return y[:, :length]
