"""A convolution over weights that are given, for networks that are never trained here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class ConvWeights(NamedTuple):
    """kernel [taps, taps, channels in, channels out] and bias [channels out]."""

    kernel: Any
    bias: Any


def conv_relu(
    x: Float[Array | np.ndarray, "b h w c"],
    weights: ConvWeights,
    *,
    stride: int = 1,
    padding: int,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b _ _ _"]:
    """relu(x * kernel + bias), computed in `dtype`, with zeros around x: [b, h, w, c] -> NHWC."""
    y = jax.lax.conv_general_dilated(
        jnp.asarray(x, dtype),
        jnp.asarray(weights.kernel, dtype),
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(y + jnp.asarray(weights.bias, dtype))
