"""The affine map every layer is made of."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cogview_jax.models.remat import PRODUCT, named


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x: jax.Array, kernel: jax.Array, dtype: DTypeLike, platform: str = "cpu") -> jax.Array:
    """x @ kernel as `dtype`: [..., D], [D, *F] -> [..., *F].

    The kernel keeps its axes: flattened, one that is split along its last axis would be exchanged
    between devices first. The gradient of the kernel sums over all positions, for which XLA's CPU
    backend transposes the first operand of that product in memory. JAX's own rule puts the gradient
    of y there; this puts, where the platform is "cpu", whichever of x and y is narrower. Both
    products of the backward pass are in the type of x.
    """
    last = x.ndim - 1
    return jax.lax.dot_general(x, kernel, (((last,), (0,)), ((), ())), preferred_element_type=dtype)


def _product_forward(
    x: jax.Array, kernel: jax.Array, dtype: DTypeLike, platform: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, kernel, dtype, platform), (x, kernel)


def _product_backward(
    dtype: DTypeLike, platform: str, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dy = dy.astype(x.dtype)
    positions, features = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, dy.ndim))
    over_positions = ((positions, positions), ((), ()))
    if kernel.shape[0] < kernel[0].size or platform != "cpu":
        gradient = jax.lax.dot_general(x, dy, over_positions)
    else:
        gradient = jnp.moveaxis(jax.lax.dot_general(dy, x, over_positions), -1, 0)
    back = ((features, tuple(range(1, kernel.ndim))), ((), ()))
    return jax.lax.dot_general(dy, kernel, back), gradient


product.defvjp(_product_forward, _product_backward)


#: What stands in the place of a kernel that decoding reads: `transpose_for_matvec`.
TRANSPOSED = "transposed"
#: Into how many parts a matrix is split at most.
MOST_PARTS = 8


@jax.jit
def transpose_for_matvec(kernel: jax.Array) -> tuple[jax.Array]:
    """A kernel [D, *F] as [F, D], the form in which XLA's CPU backend multiplies few rows fastest.

    It is in a tuple, since `split_for_cores` may split it.
    """
    return (kernel.reshape(kernel.shape[0], -1).T,)


def matvec_parts(rows: int, platform: str) -> int:
    """Into how many parts a matrix is split that is multiplied with so many rows.

    Such a product is as fast as the matrix comes from memory. On a CPU XLA reads it with all cores
    for one row, but with one core for several: then there is a part for each core, and their
    products run at the same time. Elsewhere the matrix stays whole.
    """
    return min(os.cpu_count() or 1, MOST_PARTS) if rows > 1 and platform == "cpu" else 1


def split_for_cores(params: Any, parts: int) -> Any:
    """Parameters with every `transpose_for_matvec` split into parts, unless it is already."""

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
    x: jax.Array, parts: Sequence[jax.Array], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """x @ kernel as `dtype`, of a kernel in parts [F_i, D]: [..., D] -> [..., F]."""
    rows = x.reshape(-1, x.shape[-1])
    over_width = (((1,), (1,)), ((), ()))
    columns = [
        jax.lax.dot_general(part, rows, over_width, preferred_element_type=dtype) for part in parts
    ]
    return jnp.concatenate(columns).T.reshape(*x.shape[:-1], -1)


class Linear(nn.Module):
    """x @ kernel + bias over the last dimension: [..., D] -> [..., *features].

    names: the logical axes of the kernel, input first, which describe its shape. init_std: standard
    deviation of the normal distribution that the kernel starts from. platform: what the program is
    for, which says how the backward pass multiplies (`product`).
    """

    features: tuple[int, ...]
    names: tuple[str, ...]
    init_std: float
    dtype: DTypeLike = jnp.float32
    platform: str = "cpu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """One matrix product, whatever the number of features' axes."""
        x = x.astype(self.dtype)
        if self.has_variable("params", TRANSPOSED):
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
            y = product(x, kernel.astype(self.dtype), self.dtype, self.platform)
        bias: Any = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:]),
            self.features,
            jnp.float32,
        )
        # Spread before it is cast: its gradient is then a sum in float32, over all positions.
        return named(y + jnp.broadcast_to(bias, y.shape).astype(self.dtype), PRODUCT)
