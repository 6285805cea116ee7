"""Layer normalisation, with the paper's precision relaxation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) x scale + bias over the last dimension.

    pb_relax divides each row by its largest absolute value first (CogView, section 2.4):
    normalisation does not see the factor, while the squares inside the variance stay at most 1 and
    cannot overflow a half-precision type. The maximum is the row's own: nothing crosses from one
    token to another. Reductions are in float32. initial_scale: what the scale starts from.
    """

    pb_relax: bool = True
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        names = ("norm",)
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.constant(self.initial_scale), names),
            (x.shape[-1],),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, names),
            (x.shape[-1],),
            jnp.float32,
        )
        x = x.astype(jnp.float32)
        if self.pb_relax:
            # No gradient through the factor: it changes nothing. A row of zeros stays as it is.
            largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
            x = x / jnp.where(largest < jnp.finfo(x.dtype).tiny, 1, largest)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        centred = x - mean
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * scale + bias).astype(self.dtype)
