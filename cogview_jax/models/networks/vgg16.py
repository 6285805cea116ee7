"""The convolutions of VGG-16 (Simonyan & Zisserman 2014, arXiv 1409.1556) as features.

There are thirteen 3x3 convolutions in blocks of 2, 2, 3, 3 and 3, with ReLU; a 2x2 max-pooling
stands between blocks. The channel counts are those of the weights.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cogview_jax.models.networks.convolution import ConvWeights, conv_relu

#: How many convolutions each block has.
BLOCKS = (2, 2, 3, 3, 3)
#: Taps along a side of each convolution's kernel.
KERNELS = (3,) * sum(BLOCKS)
#: The convolutions whose ReLU is a feature: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
TAPPED = tuple(count - 1 for count in itertools.accumulate(BLOCKS))
#: Pixels along a side of the smallest image that leaves something of every feature.
SMALLEST = 16


def features(
    convs: Sequence[ConvWeights],
    x: Float[Array | np.ndarray, "b h w 3"],
    dtype: DTypeLike = jnp.float32,
) -> list[Float[Array, "b _ _ _"]]:
    """The last ReLU of each block: [b, h, w, 3] -> five arrays [b, h / 2^i, w / 2^i, c_i].

    Args:
        convs: the thirteen convolutions in order.
        x: images as the network was trained on them, h and w at least `SMALLEST`.
        dtype: in which convolutions are computed.
    """
    found: list[Float[Array, "b _ _ _"]] = []
    remaining = iter(convs)
    y = jnp.asarray(x, dtype)
    for count in BLOCKS:
        y = max_pool(y) if found else y
        for weights in itertools.islice(remaining, count):
            y = conv_relu(y, weights, padding=1, dtype=dtype)
        found.append(y)
    return found


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """The largest of each 2x2: [b, h, w, c] -> [b, h // 2, w // 2, c].

    The gradient goes to the first of equal values, row by row, as in PyTorch. Written as
    comparisons, since the gradient of a window reduction is slow on CPUs.
    """
    rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return _first_larger(
        *(
            _first_larger(*(x[:, i:rows:2, j:columns:2] for j in (0, 1)))  # one row of the window
            for i in (0, 1)
        )
    )


def _first_larger(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.where(first >= second, first, second)
