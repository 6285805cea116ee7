"""Layer normalisation, with the paper's precision relaxation and the release's form of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) x scale + bias over the last dimension.

    relax says what the input is divided by first, which normalisation does not see, while the
    squares inside the variance stay small and cannot overflow a half-precision type:

    - "row": each row's largest absolute value (CogView, section 2.4). Nothing crosses from one
      token to another.
    - "tensor": an eighth of the largest absolute value of the whole tensor, as the release does.
      One token's outlier then makes epsilon weigh more for all others, also for earlier ones and
      for other samples.
    - "none": nothing.

    reductions: the type in which mean and variance are computed; float16 shows what PB-relax is
    for. initial_scale: what the scale starts from.
    """

    relax: str = "row"
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    initial_scale: float = 1.0
    reductions: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, counted: jax.Array | None = None) -> jax.Array:
        """[..., D] -> [..., D].

        counted, bool [B, T] for an x of [B, T, D], matters to "tensor" alone: the largest value is
        then looked for among a sequence's own counted tokens, so that neither padding nor the rest
        of the batch has a say. It is what the release computes for a batch of one.
        """
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
        x = x.astype(self.reductions)
        if self.relax != "none":
            # No gradient through the factor: it changes nothing.
            x = x / self._largest(jax.lax.stop_gradient(jnp.abs(x)), counted)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        centred = x - mean
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + jnp.asarray(self.epsilon, x.dtype))
        return (normal * scale.astype(x.dtype) + bias.astype(x.dtype)).astype(self.dtype)

    def _largest(self, magnitude: jax.Array, counted: jax.Array | None) -> jax.Array:
        """What |x| is divided by, of a shape that broadcasts to it."""
        if self.relax == "row":
            largest = jnp.max(magnitude, axis=-1, keepdims=True)
            # A row of zeros stays as it is.
            return jnp.where(largest < jnp.finfo(largest.dtype).tiny, 1, largest)
        if counted is None:
            return jnp.max(magnitude) / 8
        own = jnp.where(counted[..., None], magnitude, 0)
        largest = jnp.max(own, axis=(-2, -1), keepdims=True)
        return jnp.where(largest > 0, largest, 8) / 8
