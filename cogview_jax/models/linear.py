"""The affine map that every layer is made of."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from cogview_jax.models.quantization import KERNEL_SCALE, integer_product, widened_product
from cogview_jax.models.remat import LINEAR_OUTPUT


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(
    x: Float[Array | np.ndarray, "*B D"],
    kernel: Float[Array | np.ndarray, " D *F"],
    dtype: DTypeLike,
    platform: str = "cpu",
) -> Float[Array, "..."]:
    """Multiplies x with a kernel; the result has the shape [*B, *F] and the type `dtype`.

    The kernel keeps its axes. If it were flattened, a kernel that is split along its last axis
    would first be exchanged between devices.

    The gradient of the kernel is a product that sums over all positions, and XLA's CPU backend
    transposes the first operand of such a product in memory. JAX's own rule puts the gradient of
    the result there. This function puts the narrower of x and that gradient there if `platform` is
    "cpu". Both products of the backward pass are in the type of x.
    """
    last = x.ndim - 1
    return jax.lax.dot_general(x, kernel, (((last,), (0,)), ((), ())), preferred_element_type=dtype)


def _matmul_forward(
    x: Any, kernel: Any, dtype: DTypeLike, platform: str
) -> tuple[jax.Array, tuple[Any, Any]]:
    return matmul(x, kernel, dtype, platform), (x, kernel)


def _matmul_backward(
    dtype: DTypeLike, platform: str, saved: tuple[Any, Any], dy: Any
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dy = dy.astype(x.dtype)
    positions, features = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, dy.ndim))
    over_positions = ((positions, positions), ((), ()))
    if kernel.shape[0] < kernel[0].size or platform != "cpu":
        dkernel = jax.lax.dot_general(x, dy, over_positions)
    else:
        dkernel = jnp.moveaxis(jax.lax.dot_general(dy, x, over_positions), -1, 0)
    over_features = ((features, tuple(range(1, kernel.ndim))), ((), ()))
    return jax.lax.dot_general(dy, kernel, over_features), dkernel


matmul.defvjp(_matmul_forward, _matmul_backward)


#: The name of a parameter that replaces "kernel" for decoding; see `transpose_for_matvec`.
TRANSPOSED = "transposed"
#: The names of the matrices of a low-rank adapter beside a kernel; see `models.lora`.
LORA_A, LORA_B = "lora_A", "lora_B"
#: The largest number of parts that a matrix is split into.
MAX_PARTS = 8


def transpose_for_matvec(kernel: Num[Array | np.ndarray, " D *F"]) -> tuple[Any]:
    """Reshapes a kernel to [F, D], which XLA's CPU backend multiplies fastest with few rows.

    The result is in a tuple because `split_for_cores` may split it into several arrays. An array of
    NumPy stays one.
    """
    return (kernel.reshape(kernel.shape[0], -1).T,)


def matvec_parts(rows: int, platform: str) -> int:
    """Returns the number of parts into which to split a matrix that is multiplied with `rows` rows.

    The speed of such a product is the speed at which the matrix is read from memory. On a CPU, XLA
    reads it with all cores for one row, but with one core for several rows. For several rows the
    matrix is therefore split into one part for each core, and the products of the parts run at the
    same time. On other platforms the matrix stays whole.
    """
    return min(os.cpu_count() or 1, MAX_PARTS) if rows > 1 and platform == "cpu" else 1


def split_for_cores(params: Any, parts: int) -> Any:
    """Splits every matrix from `transpose_for_matvec` into parts, unless it is split already.

    Args:
        params: a tree of parameters, made of mappings and tuples.
        parts: the number of parts, from `matvec_parts`.
    """

    def split(name: str, value: Any) -> Any:
        if name != TRANSPOSED:
            return split_for_cores(value, parts)
        return tuple(jnp.array_split(value[0], parts)) if len(value) == 1 else value

    if isinstance(params, Mapping):
        return {name: split(name, value) for name, value in params.items()}
    if isinstance(params, tuple):
        return tuple(split_for_cores(value, parts) for value in params)
    return params


def matvec_product(
    x: Float[Array | np.ndarray, "*B D"],
    parts: Sequence[Float[Array | np.ndarray, "_ D"]],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*B F"]:
    """Multiplies x with a kernel that is given in parts [F_i, D], where F is the sum of the F_i."""
    rows = x.reshape(-1, x.shape[-1])
    over_width = (((1,), (1,)), ((), ()))
    columns = [
        jax.lax.dot_general(part, rows, over_width, preferred_element_type=dtype) for part in parts
    ]
    return jnp.concatenate(columns).T.reshape(*x.shape[:-1], -1)


class Linear(nn.Module):
    """Computes x @ kernel + bias over the last dimension.

    Where its parameters hold the matrices A and B of a low-rank adapter, it adds (x @ A) @ B
    (`models.lora`). Where they hold the scales of a kernel in 8 bits, the kernel is multiplied as
    it is (`models.quantization`).

    Attributes:
        features: the shape of the output at each position.
        names: the logical axes of the kernel, the input axis first.
        init_std: the standard deviation of the normal distribution that the kernel starts from.
        dtype: the type of the product and of the output; parameters are float32.
        platform: the platform that the program is for, which decides how the backward pass
            multiplies (see `matmul`).
    """

    features: tuple[int, ...]
    names: tuple[str, ...]
    init_std: float
    dtype: DTypeLike = jnp.float32
    platform: str = "cpu"

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "*B D"]) -> Float[Array, "..."]:
        """Applies the map to each position; the result has the shape [*B, *features]."""
        x = x.astype(self.dtype)
        if self.has_variable("params", KERNEL_SCALE):
            y = self._quantized(x)
        elif self.has_variable("params", TRANSPOSED):
            stored: Sequence[jax.Array] = self.get_variable("params", TRANSPOSED)
            parts = [part.astype(self.dtype) for part in stored]
            y = matvec_product(x, parts, self.dtype).reshape(*x.shape[:-1], *self.features)
        else:
            kernel: Any = self.param(
                "kernel",
                nn.with_logical_partitioning(nn.initializers.normal(self.init_std), self.names),
                (x.shape[-1], *self.features),
                jnp.float32,
            )
            y = matmul(x, kernel.astype(self.dtype), self.dtype, self.platform)
            if self.has_variable("params", LORA_A):
                y = y + self._low_rank(x)
        bias: Any = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:]),
            self.features,
            jnp.float32,
        )
        # The bias is broadcast before it is cast, so its gradient is a float32 sum over positions.
        y = y + jnp.broadcast_to(bias, y.shape).astype(self.dtype)
        return checkpoint_name(y, LINEAR_OUTPUT)

    def _quantized(self, x: Float[Array | np.ndarray, "*B D"]) -> Float[Array, "..."]:
        """Computes x @ kernel of a kernel in 8 bits."""
        scale: Any = self.get_variable("params", KERNEL_SCALE)
        if not self.has_variable("params", TRANSPOSED):
            kernel: Any = self.get_variable("params", "kernel")
            return widened_product(x, kernel, scale, self.dtype)
        parts: Any = self.get_variable("params", TRANSPOSED)
        y = integer_product(x, parts, scale, self.dtype)
        return y.reshape(*x.shape[:-1], *self.features)

    def _low_rank(self, x: Float[Array | np.ndarray, "*B D"]) -> Float[Array, "..."]:
        """Computes (x @ A) @ B."""
        a: Any = self.get_variable("params", LORA_A)
        b: Any = self.get_variable("params", LORA_B)
        inner = matmul(x, a.astype(self.dtype), self.dtype, self.platform)
        return matmul(inner, b.astype(self.dtype), self.dtype, self.platform)
