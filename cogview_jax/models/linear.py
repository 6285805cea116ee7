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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> jax.Array:
    """x @ kernel as `dtype`: [..., D], [D, *F] -> [..., *F].

    The kernel keeps its axes: flattened, one that is split along its last axis would be exchanged
    between devices first. The gradient of the kernel sums over all positions, for which XLA's CPU
    backend transposes the first operand of that product in memory. JAX's own rule puts the gradient
    of y there; this puts, on CPUs, whichever of x and y is narrower. Both products of the backward
    pass are in the type of x.
    """
    last = x.ndim - 1
    return jax.lax.dot_general(x, kernel, (((last,), (0,)), ((), ())), preferred_element_type=dtype)


def _product_forward(x: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> tuple:
    return product(x, kernel, dtype), (x, kernel)


def _product_backward(dtype: DTypeLike, saved: tuple, dy: jax.Array) -> tuple:
    x, kernel = saved
    dy = dy.astype(x.dtype)
    positions, features = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, dy.ndim))
    over_positions = ((positions, positions), ((), ()))
    if kernel.shape[0] < kernel[0].size or not on_cpu():
        gradient = jax.lax.dot_general(x, dy, over_positions)
    else:
        gradient = jnp.moveaxis(jax.lax.dot_general(dy, x, over_positions), -1, 0)
    back = ((features, tuple(range(1, kernel.ndim))), ((), ()))
    return jax.lax.dot_general(dy, kernel, back), gradient


product.defvjp(_product_forward, _product_backward)


#: What stands in the place of a kernel that decoding reads: `streams`.
STREAMS = "streams"
#: Into how many parts a matrix is cut at most.
MOST_PARTS = 8


@jax.jit
def streams(kernel: jax.Array) -> tuple[jax.Array]:
    """A kernel [D, *F] as [F, D], the form in which XLA's CPU backend multiplies few rows fastest.

    In a tuple, since `side_by_side` may cut it.
    """
    return (kernel.reshape(kernel.shape[0], -1).T,)


def cut(matrix: jax.Array, rows: int) -> list[jax.Array]:
    """A matrix [F, D] in the parts in which it is multiplied with so many rows.

    Such a product is as fast as the matrix comes from memory. On a CPU XLA reads it with all cores
    for one row, but with one core for several: then products with a part for each core run side by
    side. Elsewhere it stays whole.
    """
    parts = min(os.cpu_count() or 1, MOST_PARTS) if rows > 1 and on_cpu() else 1
    return jnp.array_split(matrix, parts)


def side_by_side(params: Any, rows: int) -> Any:
    """Parameters with all `streams` cut for so many rows; those that are cut stay as they are."""

    def turn(name: str, value: Any) -> Any:
        if name != STREAMS:
            return side_by_side(value, rows)
        return tuple(cut(value[0], rows)) if len(value) == 1 else value

    if isinstance(params, Mapping):
        return {name: turn(name, value) for name, value in params.items()}
    if isinstance(params, tuple):
        return tuple(side_by_side(value, rows) for value in params)
    return params


def on_cpu() -> bool:
    """Whether programs made now are for a CPU."""
    return jax.default_backend() == "cpu"


def streamed_product(
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

    names: the logical axes of the kernel, input first. deviation: of the normal the kernel starts
    from. The kernel has the shape its names describe.
    """

    features: tuple[int, ...]
    names: Sequence[str]
    deviation: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """One matrix product, whatever the number of features' axes."""
        x = x.astype(self.dtype)
        if self.has_variable("params", STREAMS):
            parts = [part.astype(self.dtype) for part in self.get_variable("params", STREAMS)]
            y = streamed_product(x, parts, self.dtype).reshape(*x.shape[:-1], *self.features)
        else:
            kernel = self.param(
                "kernel",
                nn.with_logical_partitioning(nn.initializers.normal(self.deviation), self.names),
                (x.shape[-1], *self.features),
                jnp.float32,
            )
            y = product(x, kernel.astype(self.dtype), self.dtype)
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:]),
            self.features,
            jnp.float32,
        )
        # Spread before it is cast: its gradient is then a sum in float32, over all positions.
        return named(y + jnp.broadcast_to(bias, y.shape).astype(self.dtype), PRODUCT)
