"""Causal attention as one kernel, which never writes its scores to memory.

On NVIDIA GPUs the kernel is cuDNN's flash attention (Dao 2023, arXiv 2307.08691), called through
`jax.nn`, and on TPUs it is splash attention (`kernels.splash_attention`). Both compute scores and
softmax in float32 for inputs of any type. Nothing in them overflows, so they do without the
precision relaxation of the paper, which changes no result. They cannot drop weights.

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

from cogview_jax.models.kernels.splash_attention import splash_attention

#: The names of the kernels.
FusedKernel = Literal["cudnn", "splash"]
#: The lowest compute capability that has cuDNN's kernel (Ampere), and the largest head width that
#: it takes on all devices that have it.
MIN_CAPABILITY, MAX_HEAD_WIDTH = 8.0, 128


@flax.struct.dataclass
class Causal:
    """The attention pattern in which a query of a whole sequence sees its own position and earlier.

    It asks for a fused kernel.

    Attributes:
        kernel: which one, a `FusedKernel`.
        interpret: whether operations of XLA compute the same function, on any device.
    """

    kernel: str = flax.struct.field(pytree_node=False, default="cudnn")
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


def fused_kernel(device: Device, dtype: DTypeLike, head_width: int) -> FusedKernel | None:
    """Returns the kernel that `device` can run on numbers of `dtype`; None if there is none."""
    if device.platform == "tpu":
        # Mosaic compiles it for heads of any width, but not in float16, nor in bfloat16 before v4.
        old = device.device_kind.startswith(("TPU v2", "TPU v3"))
        return None if old or jnp.dtype(dtype) == jnp.float16 else "splash"
    if device.platform != "gpu" or jnp.dtype(dtype).itemsize != 2:
        return None
    # NVIDIA's capabilities are like "9.0", and AMD's are like "gfx942".
    capability = str(getattr(device, "compute_capability", ""))
    recent = re.fullmatch(r"\d+\.\d+", capability) and float(capability) >= MIN_CAPABILITY
    fits = head_width % 8 == 0 and head_width <= MAX_HEAD_WIDTH
    return "cudnn" if recent and fits else None


def fused_attention(
    queries: Float[Array, "B N T H"],
    keys: Float[Array, "B N T H"],
    values: Float[Array, "B N T H"],
    pattern: Causal,
) -> Float[Array, "B T N H"]:
    """Computes softmax(Q K^T / sqrt H) V, where a query sees its own position and earlier."""
    if pattern.kernel == "splash":
        y = splash_attention(queries, keys, values, interpret=pattern.interpret)
        return rearrange(y, "b n t h -> b t n h")
    program: Literal["xla", "cudnn"] = "xla" if pattern.interpret else "cudnn"
    length = queries.shape[2]
    # The backward pass of the kernel takes even lengths only. No query sees the padding at the end.
    padding = ((0, 0), (0, length % 2), (0, 0), (0, 0))
    q, k, v = (
        jnp.pad(rearrange(x, "b n t h -> b t n h"), padding) for x in (queries, keys, values)
    )
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=program)
    return y[:, :length]
