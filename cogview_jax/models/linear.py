"""The affine map every layer is made of."""

import functools
from collections.abc import Sequence

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
    if kernel.shape[0] < kernel[0].size or jax.default_backend() != "cpu":
        gradient = jax.lax.dot_general(x, dy, over_positions)
    else:
        gradient = jnp.moveaxis(jax.lax.dot_general(dy, x, over_positions), -1, 0)
    back = ((features, tuple(range(1, kernel.ndim))), ((), ()))
    return jax.lax.dot_general(dy, kernel, back), gradient


product.defvjp(_product_forward, _product_backward)


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
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(self.deviation), self.names),
            (x.shape[-1], *self.features),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:]),
            self.features,
            jnp.float32,
        )
        y = product(x.astype(self.dtype), kernel.astype(self.dtype), self.dtype)
        # Spread before it is cast: its gradient is then a sum in float32, over all positions.
        return named(y + jnp.broadcast_to(bias, y.shape).astype(self.dtype), PRODUCT)
