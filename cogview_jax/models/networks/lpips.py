"""LPIPS, a perceptual distance of images (Zhang et al. 2018, arXiv 1801.03924), version 0.1.

Features of both images are scaled to unit length in each position; their squared differences are
weighted by channel, averaged over positions and summed over layers. The weights are given
(`interop.feature_weights` reads them from files).

Legend: b batch, h w rows and columns, c channels.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cogview_jax.models.networks import alexnet, vgg16
from cogview_jax.models.networks.convolution import ConvWeights
from cogview_jax.runtime.errors import InputError

#: What images in [-1, 1] are normalised by before the network: ImageNet's mean and standard
#: deviation, in that range.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
#: Added to the length of a position's features.
EPSILON = 1e-10


class FeatureNetwork(NamedTuple):
    """A network whose features are compared.

    kernels: taps along a side of each convolution. tapped: the convolutions whose ReLU is a
    feature. smallest: pixels along a side of an image, at least. features: (convolutions, images,
    type of the arithmetic) -> features.
    """

    kernels: tuple[int, ...]
    tapped: tuple[int, ...]
    smallest: int
    features: Callable[..., list[Array]]


NETWORKS = MappingProxyType(
    {
        name: FeatureNetwork(module.KERNELS, module.TAPPED, module.SMALLEST, module.features)
        for name, module in (("vgg16", vgg16), ("alexnet", alexnet))
    }
)


@flax.struct.dataclass
class LpipsWeights:
    """The weights of LPIPS, a pytree.

    network: a name in `NETWORKS`; it is no part of the pytree. convs: its convolutions in order.
    heads: for each feature the non-negative weights of its channels, [c].
    """

    network: str = flax.struct.field(pytree_node=False)
    convs: tuple[ConvWeights, ...]
    heads: tuple[Any, ...]


def lpips(
    weights: LpipsWeights,
    a: Float[Array | np.ndarray, "b h w 3"],
    b: Float[Array | np.ndarray, "b h w 3"],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, " b"]:
    """The distance of each image of `a` from that of `b`, float32 [b]; 0 for equal images.

    Args:
        weights: of the network and its heads.
        a: images in [-1, 1], [b, h, w, 3].
        b: images of the same shape.
        dtype: in which convolutions are computed; the rest is float32.

    Raises:
        InputError: the images are too small for the network.
    """
    return jnp.sum(lpips_by_layer(weights, a, b, dtype), axis=-1)


def lpips_by_layer(
    weights: LpipsWeights,
    a: Float[Array | np.ndarray, "b h w 3"],
    b: Float[Array | np.ndarray, "b h w 3"],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b layers"]:
    """What each feature adds to the distance, float32 [b, layers]; see `lpips`."""
    network = NETWORKS[weights.network]
    if min(a.shape[1:3]) < network.smallest:
        raise InputError(
            f"images of {a.shape[1]} x {a.shape[2]} pixels are too small for LPIPS by"
            f" {weights.network}: expected at least {network.smallest} along each side"
        )
    first, second = (network.features(weights.convs, scaled(x), dtype) for x in (a, b))
    return jnp.stack(
        [
            jnp.mean((unit_length(x) - unit_length(y)) ** 2, axis=(1, 2)) @ jnp.asarray(head)
            for x, y, head in zip(first, second, weights.heads, strict=True)
        ],
        axis=-1,
    )


def scaled(images: Float[Array | np.ndarray, "*b 3"]) -> Float[Array, "*b 3"]:
    """Images in [-1, 1] as the networks were trained on them."""
    return (jnp.asarray(images) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)


def unit_length(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """x / (|x| + epsilon) over channels, in float32.

    Where all channels are 0 the length has gradient 0, not the quotient 0 / 0 of its root.
    """
    x = x.astype(jnp.float32)
    squared = jnp.sum(x**2, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(squared > 0, squared, 1))
    return x / (jnp.where(squared > 0, length, 0) + EPSILON)
