"""Layer normalisation, with the precision relaxation of the paper and the release's form of it."""

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
    """Computes (x - mean) / sqrt(variance + epsilon) over the last dimension, in the type of x.

    The gradient is written out. Automatic differentiation would compute the variance to the power
    -3/2, which overflows float16 for rows that vary by less than 2%.
    """
    normalised, _ = _standardise(x, epsilon)
    return normalised


def _standardise(x: Any, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Returns the normalised rows and the factor by which the centred values were multiplied."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(variance + jnp.asarray(epsilon, x.dtype))
    return centred * factor, factor


@standardise.defjvp
def _standardise_jvp(
    epsilon: float, primals: tuple[Any], tangents: tuple[Any]
) -> tuple[jax.Array, jax.Array]:
    normalised, factor = _standardise(primals[0], epsilon)
    centred = tangents[0] - jnp.mean(tangents[0], axis=-1, keepdims=True)
    along = jnp.mean(normalised * centred, axis=-1, keepdims=True)
    return normalised, factor * (centred - normalised * along)


class LayerNorm(nn.Module):
    """Computes (x - mean) / sqrt(variance + epsilon) x scale + bias over the last dimension.

    `relax` says what the input is divided by first. The division cancels in the normalisation, but
    it keeps the squares inside the variance small, so that they cannot overflow a half-precision
    type:

    - "row": the largest absolute value of each row (PB-relax, arXiv 2105.13290, section 2.4). No
      token influences another.
    - "tensor": an eighth of the largest absolute value of the whole tensor, as the release does it.
      An outlier in one token then makes epsilon weigh more for all others, also for earlier tokens
      and for other samples.
    - "none": the input is not divided.

    Attributes:
        relax: one of the choices above.
        epsilon: a number that is added to the variance.
        dtype: the type of the output; parameters are float32.
        initial_scale: the value that the scale starts from.
        reductions: the type in which mean and variance are computed. With float16, PB-relax is
            needed.
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
        """Normalises x.

        Args:
            x: the input.
            valid_mask: which tokens are valid, for an x of shape [b, t, D]. Only "tensor" uses it:
                then the largest value is taken over the valid tokens of each sequence, so that
                neither padding nor the rest of the batch changes it. This is what the release
                computes for a batch of one.
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
            # The divisor does not change the result, so no gradient has to go through it.
            x = x / self._divisor(jax.lax.stop_gradient(jnp.abs(x)), valid_mask)
        normalised = standardise(x, self.epsilon)
        # Both are broadcast before they are cast, so their gradients are float32 sums over rows.
        scale, bias = (jnp.broadcast_to(p, x.shape).astype(x.dtype) for p in (scale, bias))
        return (normalised * scale + bias).astype(self.dtype)

    def _divisor(
        self,
        magnitude: Float[Array, "*B D"],
        valid_mask: Bool[Array | np.ndarray, "b t"] | None,
    ) -> Float[Array, "..."]:
        """Returns what x is divided by, in a shape that broadcasts to that of |x|."""
        if self.relax == "row":
            largest = jnp.max(magnitude, axis=-1, keepdims=True)
            # A row of zeros is divided by 1.
            return jnp.where(largest < jnp.finfo(largest.dtype).tiny, 1, largest)
        if valid_mask is None:
            # As in the release, a tensor of zeros gives NaN.
            return jnp.max(magnitude) / 8
        valid = jnp.where(valid_mask[..., None], magnitude, 0)
        largest = jnp.max(valid, axis=(-2, -1), keepdims=True)
        return jnp.where(largest > 0, largest, 8) / 8
