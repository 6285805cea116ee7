"""The affine map every layer is made of."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


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
        y = x.astype(self.dtype) @ kernel.astype(self.dtype).reshape(width, -1)
        return y.reshape(*x.shape[:-1], *self.features) + bias.astype(self.dtype)
