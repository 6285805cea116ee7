"""Causal attention as one kernel: its scores never reach memory.

The kernel is cuDNN's flash attention (Dao 2023, arXiv 2307.08691) through `jax.nn`. It keeps scores
and softmax in float32 whatever the type of its inputs, so nothing in it overflows, and the paper's
relaxation, which changes no result, has nothing left to do. It can drop no weights.

Legend: B batch, T positions, N heads, H head width.
"""

import re
from typing import Literal

import flax
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

#: The oldest devices that have it (Ampere), and the widest head it takes on all of them.
CAPABILITY, WIDEST = 8.0, 128


@flax.struct.dataclass
class Causal:
    """The attention pattern of whole sequences in which a query sees itself and what precedes it.

    It asks for the fused kernel. interpret: the same function in XLA's operations, on any device.
    """

    interpret: bool = flax.struct.field(pytree_node=False, default=False)


def runs_fused_attention(device: jax.Device, dtype: DTypeLike, head_width: int) -> bool:
    """Whether `device` can run the kernel on numbers of `dtype`."""
    if device.platform != "gpu" or jnp.dtype(dtype).itemsize != 2:
        return False
    # NVIDIA's are "9.0" and the like, AMD's "gfx942".
    capability = str(getattr(device, "compute_capability", ""))
    recent = re.fullmatch(r"\d+\.\d+", capability) and float(capability) >= CAPABILITY
    return bool(recent) and head_width % 8 == 0 and head_width <= WIDEST


def fused_attention(
    queries: Float[Array, "B N T H"],
    keys: Float[Array, "B N T H"],
    values: Float[Array, "B N T H"],
    pattern: Causal,
) -> Float[Array, "B T N H"]:
    """softmax(Q K^T / sqrt H) V, over each query and what stands before it.

    [B, N, T, H] three times -> [B, T, N, H].
    """
    kernel: Literal["xla", "cudnn"] = "xla" if pattern.interpret else "cudnn"
    length = queries.shape[2]
    # The kernel's backward pass takes even lengths. What is added at the end nobody sees.
    odd = ((0, 0), (0, length % 2), (0, 0), (0, 0))
    q, k, v = (jnp.pad(rearrange(x, "b n t h -> b t n h"), odd) for x in (queries, keys, values))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kernel)
    return y[:, :length]
