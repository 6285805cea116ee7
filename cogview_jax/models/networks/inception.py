"""Inception v3 (Szegedy et al. 2015, arXiv 1512.00567): 2048 features, and the logits of classes.

It is the network of FID, IS and KID as it was trained in 2015 (1008 outputs). torchvision's network
of the same name has the same convolutions and other pools; `Pooling` holds the difference.
Batch norms are part of the convolutions (`folded`).

The network has five kinds of blocks, A to E as torchvision calls them. In most of them several
branches begin with a 1x1 convolution of the block's input. These are computed as one matrix
product, to which the convolution behind the block's average pool belongs as well: the two are
linear and commute, and the pool then has fewer channels.

Legend: b images; their other axes are rows, columns and channels.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cogview_jax.models.networks.convolution import ConvWeights

#: Pixels along a side of an image, how many features it gets, and the outputs of FID's network.
PIXELS, FEATURES, CLASSES = 299, 2048, 1008
#: Added to variances by batch norms.
EPSILON = 1e-3


class Pooling(NamedTuple):
    """How the blocks of stride 1 pool their input, 3x3.

    count_padding: whether the zeros around the image count in average pools. last_is_max: whether
    the last block takes maxima instead of averages.
    """

    count_padding: bool
    last_is_max: bool


#: Of FID's network, and of torchvision's.
FID, TORCHVISION = Pooling(False, True), Pooling(True, False)


class InceptionWeights(NamedTuple):
    """A pytree. convs: by the names in `CONVS`. head: the last layer, [2048, k] and bias [k]."""

    convs: Mapping[str, ConvWeights]
    head: ConvWeights


Block = Mapping[str, ConvWeights]
Images = Float[Array, "b _ _ _"]
Pool = Callable[[Images], Images]


def _a(block: Block, x: Images, pool: Pool | None) -> Images:
    one, five, double, pooled = _entry(block, x, pool, "branch1x1", "branch5x5_1", "branch3x3dbl_1")
    five = _chain(block, five, "branch5x5_2")
    double = _chain(block, double, "branch3x3dbl_2", "branch3x3dbl_3")
    return jnp.concatenate([one, five, double, pooled], axis=-1)


def _b(block: Block, x: Images, pool: Pool | None) -> Images:
    three = _conv(x, block["branch3x3"], stride=2, padding="VALID")
    double = _chain(block, x, "branch3x3dbl_1", "branch3x3dbl_2")
    double = _conv(double, block["branch3x3dbl_3"], stride=2, padding="VALID")
    return jnp.concatenate([three, double, _max_pool(x)], axis=-1)


def _c(block: Block, x: Images, pool: Pool | None) -> Images:
    one, seven, double, pooled = _entry(
        block, x, pool, "branch1x1", "branch7x7_1", "branch7x7dbl_1"
    )
    seven = _chain(block, seven, "branch7x7_2", "branch7x7_3")
    double = _chain(block, double, *(f"branch7x7dbl_{i}" for i in range(2, 6)))
    return jnp.concatenate([one, seven, double, pooled], axis=-1)


def _d(block: Block, x: Images, pool: Pool | None) -> Images:
    three, seven = _products(block, x, "branch3x3_1", "branch7x7x3_1")
    three = _conv(three, block["branch3x3_2"], stride=2, padding="VALID")
    seven = _chain(block, seven, "branch7x7x3_2", "branch7x7x3_3")
    seven = _conv(seven, block["branch7x7x3_4"], stride=2, padding="VALID")
    return jnp.concatenate([three, seven, _max_pool(x)], axis=-1)


def _e(block: Block, x: Images, pool: Pool | None) -> Images:
    one, three, double, pooled = _entry(
        block, x, pool, "branch1x1", "branch3x3_1", "branch3x3dbl_1"
    )
    double = _chain(block, double, "branch3x3dbl_2")
    ends = [
        _conv(y, block[f"{branch}{end}"])
        for y, branch in ((three, "branch3x3_2"), (double, "branch3x3dbl_3"))
        for end in "ab"
    ]
    return jnp.concatenate([one, *ends, pooled], axis=-1)


#: Rows and columns of a kernel, channels in and channels out.
Shape = tuple[int, int, int, int]


def _shapes_a(inputs: int, pooled: int) -> dict[str, Shape]:
    return {
        "branch1x1": (1, 1, inputs, 64),
        "branch5x5_1": (1, 1, inputs, 48),
        "branch5x5_2": (5, 5, 48, 64),
        "branch3x3dbl_1": (1, 1, inputs, 64),
        "branch3x3dbl_2": (3, 3, 64, 96),
        "branch3x3dbl_3": (3, 3, 96, 96),
        "branch_pool": (1, 1, inputs, pooled),
    }


def _shapes_c(inner: int) -> dict[str, Shape]:
    return {
        "branch1x1": (1, 1, 768, 192),
        "branch7x7_1": (1, 1, 768, inner),
        "branch7x7_2": (1, 7, inner, inner),
        "branch7x7_3": (7, 1, inner, 192),
        "branch7x7dbl_1": (1, 1, 768, inner),
        "branch7x7dbl_2": (7, 1, inner, inner),
        "branch7x7dbl_3": (1, 7, inner, inner),
        "branch7x7dbl_4": (7, 1, inner, inner),
        "branch7x7dbl_5": (1, 7, inner, 192),
        "branch_pool": (1, 1, 768, 192),
    }


def _shapes_e(inputs: int) -> dict[str, Shape]:
    return {
        "branch1x1": (1, 1, inputs, 320),
        "branch3x3_1": (1, 1, inputs, 384),
        "branch3x3_2a": (1, 3, 384, 384),
        "branch3x3_2b": (3, 1, 384, 384),
        "branch3x3dbl_1": (1, 1, inputs, 448),
        "branch3x3dbl_2": (3, 3, 448, 384),
        "branch3x3dbl_3a": (1, 3, 384, 384),
        "branch3x3dbl_3b": (3, 1, 384, 384),
        "branch_pool": (1, 1, inputs, 192),
    }


_STEM = {
    "Conv2d_1a_3x3": (3, 3, 3, 32),
    "Conv2d_2a_3x3": (3, 3, 32, 32),
    "Conv2d_2b_3x3": (3, 3, 32, 64),
    "Conv2d_3b_1x1": (1, 1, 64, 80),
    "Conv2d_4a_3x3": (3, 3, 80, 192),
}
#: What each block computes, and its kernels.
_BLOCKS: dict[str, tuple[Callable[[Block, Images, Pool | None], Images], dict[str, Shape]]] = {
    "Mixed_5b": (_a, _shapes_a(192, 32)),
    "Mixed_5c": (_a, _shapes_a(256, 64)),
    "Mixed_5d": (_a, _shapes_a(288, 64)),
    "Mixed_6a": (
        _b,
        {
            "branch3x3": (3, 3, 288, 384),
            "branch3x3dbl_1": (1, 1, 288, 64),
            "branch3x3dbl_2": (3, 3, 64, 96),
            "branch3x3dbl_3": (3, 3, 96, 96),
        },
    ),
    "Mixed_6b": (_c, _shapes_c(128)),
    "Mixed_6c": (_c, _shapes_c(160)),
    "Mixed_6d": (_c, _shapes_c(160)),
    "Mixed_6e": (_c, _shapes_c(192)),
    "Mixed_7a": (
        _d,
        {
            "branch3x3_1": (1, 1, 768, 192),
            "branch3x3_2": (3, 3, 192, 320),
            "branch7x7x3_1": (1, 1, 768, 192),
            "branch7x7x3_2": (1, 7, 192, 192),
            "branch7x7x3_3": (7, 1, 192, 192),
            "branch7x7x3_4": (3, 3, 192, 192),
        },
    ),
    "Mixed_7b": (_e, _shapes_e(1280)),
    "Mixed_7c": (_e, _shapes_e(2048)),
}
_LAST = "Mixed_7c"
#: The shape of each convolution's kernel by its name in the files of pytorch-fid and torchvision.
CONVS: Mapping[str, Shape] = MappingProxyType(
    _STEM
    | {
        f"{block}.{branch}": shape
        for block, (_, shapes) in _BLOCKS.items()
        for branch, shape in shapes.items()
    }
)


def folded(
    kernel: Float[np.ndarray, "*taps in out"],
    scale: Float[np.ndarray, " out"],
    shift: Float[np.ndarray, " out"],
    mean: Float[np.ndarray, " out"],
    variance: Float[np.ndarray, " out"],
    epsilon: float = EPSILON,
) -> ConvWeights:
    """A convolution without a bias and the batch norm behind it as one convolution, float32.

    scale (x * kernel - mean) / sqrt(variance + epsilon) + shift = x * (factor kernel) + bias
    """
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    return ConvWeights((kernel * factor).astype(np.float32), np.float32(shift - mean * factor))


def features(
    weights: InceptionWeights,
    x: Float[Array | np.ndarray, "b 299 299 3"],
    pooling: Pooling = FID,
) -> Float[Array, "b 2048"]:
    """The means of the last block's channels over all positions, float32.

    Args:
        weights: of the network.
        x: images in about [-1, 1]; how they are normalised depends on the protocol.
        pooling: whose pools.
    """
    convs = weights.convs
    x = _conv(jnp.asarray(x, jnp.float32), convs["Conv2d_1a_3x3"], stride=2, padding="VALID")
    x = _conv(x, convs["Conv2d_2a_3x3"], padding="VALID")
    x = _max_pool(_conv(x, convs["Conv2d_2b_3x3"]))
    x = _conv(_conv(x, convs["Conv2d_3b_1x1"]), convs["Conv2d_4a_3x3"], padding="VALID")
    x = _max_pool(x)
    average = functools.partial(_average_pool, count_padding=pooling.count_padding)
    for name, (kind, shapes) in _BLOCKS.items():
        block = {branch: convs[f"{name}.{branch}"] for branch in shapes}
        pool = None if name == _LAST and pooling.last_is_max else average
        x = kind(block, x, pool)
    return jnp.mean(x, axis=(1, 2))


def torchvision_features(
    weights: InceptionWeights, x: Float[Array | np.ndarray, "b 299 299 3"]
) -> Float[Array, "b 2048"]:
    """`features` by the pools of torchvision's network."""
    return features(weights, x, TORCHVISION)


def logits(
    weights: InceptionWeights, pooled: Float[Array | np.ndarray, "b 2048"]
) -> Float[Array, "b k"]:
    """The logits of `features`, float32: pooled @ kernel + bias."""
    return logits_without_bias(weights, pooled) + jnp.asarray(weights.head.bias)


def logits_without_bias(
    weights: InceptionWeights, pooled: Float[Array | np.ndarray, "b 2048"]
) -> Float[Array, "b k"]:
    """pooled @ kernel, float32: what torch-fidelity's inception score is of."""
    kernel = jnp.asarray(weights.head.kernel)
    return jnp.dot(pooled, kernel, precision=jax.lax.Precision.HIGHEST)


def _entry(block: Block, x: Images, pool: Pool | None, *branches: str) -> list[Images]:
    """The first convolution of branches, and that behind the pool: one product where it averages.

    pool: the average; None for maxima.
    """
    if pool is None:
        behind = _conv(_max_pool(x, stride=1), block["branch_pool"])
        return [*_products(block, x, *branches), behind]
    *found, last = _products(block, x, *branches, "branch_pool", pool=pool)
    return [*found, last]


def _products(block: Block, x: Images, *branches: str, pool: Pool = lambda x: x) -> list[Images]:
    """The 1x1 convolutions of some branches, of one input; `pool` acts on the last before bias."""
    convs = [block[branch] for branch in branches]
    kernel = jnp.concatenate([jnp.asarray(conv.kernel)[0, 0] for conv in convs], axis=-1)
    products = jnp.einsum("bhwc,cd->bhwd", x, kernel, precision=jax.lax.Precision.HIGHEST)
    ends = np.cumsum([conv.kernel.shape[-1] for conv in convs])[:-1]
    *found, last = jnp.split(products, ends, axis=-1)
    return [jax.nn.relu(y + conv.bias) for y, conv in zip([*found, pool(last)], convs, strict=True)]


def _chain(block: Block, x: Images, *branches: str) -> Images:
    """Some convolutions of stride 1, one after the other."""
    for branch in branches:
        x = _conv(x, block[branch])
    return x


def _conv(x: Images, conv: ConvWeights, *, stride: int = 1, padding: str = "SAME") -> Images:
    """relu(x * kernel + bias)

    XLA takes up to three times as long on CPUs where nothing at all is padded. So "VALID" pads
    zeros below and to the right, and leaves out the outputs that see them.
    """
    rows, columns, _, _ = conv.kernel.shape
    valid = padding == "VALID"
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(conv.kernel),
        window_strides=(stride, stride),
        padding=((0, 1), (0, 1)) if valid else padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    if valid:
        y = y[:, : _fitting(x.shape[1], rows, stride), : _fitting(x.shape[2], columns, stride)]
    return jax.nn.relu(y + jnp.asarray(conv.bias))


def _fitting(size: int, taps: int, stride: int) -> int:
    """How many windows fit along an axis."""
    return (size - taps) // stride + 1


def _max_pool(x: Images, *, stride: int = 2) -> Images:
    """The largest of each 3x3 inside the image; of stride 1, around every position.

    Written as comparisons along one axis and then the other, since XLA's reductions over windows
    take four times as long on CPUs.
    """
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        windows = _fitting(x.shape[axis], 3, stride)
        shifted = (
            jax.lax.slice_in_dim(x, i, i + (windows - 1) * stride + 1, stride, axis)
            for i in range(3)
        )
        x = functools.reduce(jnp.maximum, shifted)
    return x


def _average_pool(x: Images, *, count_padding: bool) -> Images:
    """The mean of each 3x3 around every position, of 9 values or of those inside the image."""
    zero = np.zeros((), x.dtype)
    sums = jax.lax.reduce_window(x, zero, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    if count_padding:
        return sums / 9
    rows, columns = (np.convolve(np.ones(n), np.ones(3), "same") for n in x.shape[1:3])
    return sums / jnp.asarray(np.outer(rows, columns)[:, :, None], x.dtype)
