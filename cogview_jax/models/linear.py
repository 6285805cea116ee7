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
    """x @ kernel as `dtype`: [..., D], [D, F] -> [..., F].

    The gradient of the kernel sums over all positions, and a backend may have to transpose the
    first operand of that product in memory: XLA's CPU backend does. JAX's own rule puts the
    gradient of y there; this puts whichever of x and y is narrower. Both products of the backward
    pass are in the type of x.
    """
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _product_forward(x: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> tuple:
    return product(x, kernel, dtype), (x, kernel)


def _product_backward(dtype: DTypeLike, saved: tuple, dy: jax.Array) -> tuple:
    x, kernel = saved
    dy = dy.astype(x.dtype)
    width, features = kernel.shape
    rows, row_gradients = x.reshape(-1, width), dy.reshape(-1, features)
    if width < features:
        gradient = jnp.einsum("nd,nf->df", rows, row_gradients)
    else:
        gradient = jnp.einsum("nf,nd->fd", row_gradients, rows).T
    return dy @ kernel.T, gradient


product.defvjp(_product_forward, _product_backward)


class Linear(nn.Module):
    """x @ kernel + bias over the last dimension: [..., D] -> [..., *features].

    names: the logical axes of the kernel, input first. deviation: of the normal the kernel starts
    from. The kernel keeps the shape its names describe, and is flattened for one matrix product.
    """

    features: tuple[int, ...]
    names: Sequence[str]
    deviation: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """One matrix product, whatever the number of features' axes."""
        width = x.shape[-1]
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(self.deviation), self.names),
            (width, *self.features),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:]),
            self.features,
            jnp.float32,
        )
        y = product(x.astype(self.dtype), kernel.astype(self.dtype).reshape(width, -1), self.dtype)
        y = y.reshape(*x.shape[:-1], *self.features)
        # Spread before it is cast: its gradient is then a sum in float32, over all positions.
        return named(y + jnp.broadcast_to(bias, y.shape).astype(self.dtype), PRODUCT)
