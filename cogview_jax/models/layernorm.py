"""Layer normalisation, with the paper's precision relaxation and the release's form of it."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def standardise(x: Float[Array | np.ndarray, "*B D"], epsilon: float) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + epsilon) over the last dimension: [..., D] -> [..., D].

    All in the type of x. The gradient is written out: step by step it would have the variance to
    the power -3/2, which float16 cannot hold for rows that vary by less than 2%.
    """
    normal, _ = _standardised(x, epsilon)
    return normal


def _standardised(x: Any, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The normalised rows, and what their centred values were multiplied by."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(variance + jnp.asarray(epsilon, x.dtype))
    return centred * factor, factor


@standardise.defjvp
def _standardise_jvp(
    epsilon: float, primals: tuple[Any], tangents: tuple[Any]
) -> tuple[jax.Array, jax.Array]:
    normal, factor = _standardised(primals[0], epsilon)
    change = tangents[0] - jnp.mean(tangents[0], axis=-1, keepdims=True)
    along = jnp.mean(normal * change, axis=-1, keepdims=True)
    return normal, factor * (change - normal * along)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) x scale + bias over the last dimension.

    relax says what the input is divided by first, which normalisation does not see, while the
    squares inside the variance stay small and cannot overflow a half-precision type:

    - "row": each row's largest absolute value (arXiv 2105.13290, section 2.4). Nothing crosses from
      one token to another.
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
    def __call__(
        self,
        x: Float[Array | np.ndarray, "*B D"],
        valid_mask: Bool[Array | np.ndarray, "b t"] | None = None,
    ) -> Float[Array, "*B D"]:
        """[..., D] -> [..., D].

        valid_mask, bool [B, T] for an x of [B, T, D], matters to "tensor" alone: the largest value
        is then looked for among a sequence's own valid tokens, so that neither padding nor the rest
        of the batch changes it. It is what the release computes for a batch of one.
        """
        names = ("norm",)
        scale: Any = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.constant(self.initial_scale), names),
            (x.shape[-1],),
            jnp.float32,
        )
        bias: Any = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, names),
            (x.shape[-1],),
            jnp.float32,
        )
        x = jnp.asarray(x, self.reductions)
        if self.relax != "none":
            # No gradient through the factor: it changes nothing.
            x = x / self._largest(jax.lax.stop_gradient(jnp.abs(x)), valid_mask)
        normal = standardise(x, self.epsilon)
        # Spread before they are cast: their gradients are then sums in float32, over all rows.
        scale, bias = (jnp.broadcast_to(p, x.shape).astype(x.dtype) for p in (scale, bias))
        return (normal * scale + bias).astype(self.dtype)

    def _largest(self, magnitude: jax.Array, valid_mask: Any) -> jax.Array:
        """What |x| is divided by, of a shape that broadcasts to it."""
        if self.relax == "row":
            largest = jnp.max(magnitude, axis=-1, keepdims=True)
            # A row of zeros stays as it is.
            return jnp.where(largest < jnp.finfo(largest.dtype).tiny, 1, largest)
        if valid_mask is None:
            return jnp.max(magnitude) / 8
        own = jnp.where(valid_mask[..., None], magnitude, 0)
        largest = jnp.max(own, axis=(-2, -1), keepdims=True)
        return jnp.where(largest > 0, largest, 8) / 8
