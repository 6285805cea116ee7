"""The convolutions of AlexNet as features, in its one-tower form (arXiv 1404.5997).

There are five convolutions with ReLU; a 3x3 max-pooling of stride 2 follows the first two. The
channel counts are those of the weights.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cogview_jax.models.networks.convolution import ConvWeights, conv_relu

#: Taps along a side of each convolution's kernel, its stride, and its padding.
KERNELS = (11, 5, 3, 3, 3)
STRIDES = (4, 1, 1, 1, 1)
PADDINGS = (2, 2, 1, 1, 1)
#: The convolutions before which the image is pooled.
POOLED = (1, 2)
#: The convolutions whose ReLU is a feature: all of them.
TAPPED = (0, 1, 2, 3, 4)
#: Pixels along a side of the smallest image that leaves something of every feature.
SMALLEST = 31


def features(
    convs: Sequence[ConvWeights],
    x: Float[Array | np.ndarray, "b h w 3"],
    dtype: DTypeLike = jnp.float32,
) -> list[Float[Array, "b _ _ _"]]:
    """The ReLU of each convolution: [b, h, w, 3] -> five arrays [b, h_i, w_i, c_i].

    Args:
        convs: the five convolutions in order.
        x: images as the network was trained on them, h and w at least `SMALLEST`.
        dtype: in which convolutions are computed.
    """
    found: list[Float[Array, "b _ _ _"]] = []
    y = jnp.asarray(x, dtype)
    for i, weights in enumerate(convs):
        y = max_pool(y) if i in POOLED else y
        y = conv_relu(y, weights, stride=STRIDES[i], padding=PADDINGS[i], dtype=dtype)
        found.append(y)
    return found


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """The largest of each 3x3 in steps of 2: [b, h, w, c] -> [b, (h - 1) // 2, (w - 1) // 2, c]."""
    lowest = np.array(-np.inf, x.dtype)  # traced, it would hide that this is a maximum
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
