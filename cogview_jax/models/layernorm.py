"""Layer normalisation, with the paper's precision relaxation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) x scale + bias over the last dimension: [..., D] -> [..., D].

    pb_relax divides each row by its largest absolute value first (CogView, section 2.4): normalisation does not
    see the factor, while the squares inside the variance stay at most 1 and cannot overflow a half-precision type.
    The maximum is the row's own: nothing crosses from one token to another. Reductions are in float32.
    """

    pb_relax: bool = True
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names = ("norm",)
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, names),
            (x.shape[-1],),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, names),
            (x.shape[-1],),
            jnp.float32,
        )
        if self.pb_relax:
            # No gradient through the factor: the function is invariant to it. A row of zeros stays zero.
            largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
            x = x / jnp.maximum(largest, jnp.finfo(x.dtype).tiny)
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        centred = x - mean
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * scale + bias).astype(self.dtype)
