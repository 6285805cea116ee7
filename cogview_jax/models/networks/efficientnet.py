"""EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946): 1280 features, 1000 logits.

The Lite networks of the authors' TPU repository have ReLU6 for swish and no squeeze-and-excitation.
A block widens its input by a 1x1 convolution, convolves each channel on its own (depthwise), and
narrows it by another 1x1 convolution without an activation. Batch norms are part of the
convolutions (`inception.folded`).

Legend: b images, h w rows and columns, c channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cogview_jax.models.networks.convolution import ConvWeights

#: Pixels along a side of an image, how many features it gets, and the classes of ImageNet.
PIXELS, FEATURES, CLASSES = 224, 1280, 1000
#: What the network sees of a pixel of 0 to 255: (value - SHIFT) / SCALE.
SHIFT, SCALE = 127.0, 128.0


class BlockShape(NamedTuple):
    """taps: of the depthwise kernel. wide: channels inside the block."""

    taps: int
    stride: int
    inputs: int
    wide: int
    outputs: int


#: Channels of the first convolution, 3x3 of stride 2.
STEM = 32


def _blocks() -> tuple[BlockShape, ...]:
    """For each stage taps, stride of its first block, widening, channels out, and its blocks."""
    stages = (
        *((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3)),
        *((5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)),
    )
    inputs, found = STEM, []
    for taps, stride, widening, outputs, count in stages:
        for i in range(count):
            found.append(BlockShape(taps, 1 if i else stride, inputs, widening * inputs, outputs))
            inputs = outputs
    return tuple(found)


BLOCKS = _blocks()


class BlockWeights(NamedTuple):
    """expand: None where a block does not widen its input. depthwise: of kernel [k, k, 1, c]."""

    expand: ConvWeights | None
    depthwise: ConvWeights
    project: ConvWeights


class EfficientNetWeights(NamedTuple):
    """A pytree. last: the 1x1 convolution behind the blocks. head: [1280, 1000] and bias [1000]."""

    stem: ConvWeights
    blocks: tuple[BlockWeights, ...]
    last: ConvWeights
    head: ConvWeights


def features(
    weights: EfficientNetWeights, x: Float[Array | np.ndarray, "b 224 224 3"]
) -> Float[Array, "b 1280"]:
    """The means of the last convolution's channels over all positions, float32.

    Args:
        weights: of the network.
        x: images, (value - SHIFT) / SCALE of values of 0 to 255.
    """
    x = relu6(_conv(jnp.asarray(x, jnp.float32), weights.stem, stride=2))
    for shape, block in zip(BLOCKS, weights.blocks, strict=True):
        x = apply_block(shape, block, x)
    return jnp.mean(relu6(_conv(x, weights.last)), axis=(1, 2))


def logits(
    weights: EfficientNetWeights, pooled: Float[Array | np.ndarray, "b 1280"]
) -> Float[Array, "b 1000"]:
    """The logits of `features`, float32."""
    kernel, bias = (jnp.asarray(array) for array in weights.head)
    return jnp.dot(pooled, kernel, precision=jax.lax.Precision.HIGHEST) + bias


def apply_block(
    shape: BlockShape, block: BlockWeights, x: Float[Array, "b h w c"]
) -> Float[Array, "b _ _ _"]:
    """One block: [b, h, w, inputs] -> [b, ceil(h / stride), ceil(w / stride), outputs].

    Its input is added where it has the shape of the output.
    """
    y = x if block.expand is None else relu6(_conv(x, block.expand))
    y = relu6(depthwise(y, block.depthwise, shape.stride))
    y = _conv(y, block.project)
    return x + y if shape.stride == 1 and shape.inputs == shape.outputs else y


def relu6(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """min(max(x, 0), 6)"""
    return jnp.clip(x, 0, 6)


def depthwise(
    x: Float[Array, "b h w c"], conv: ConvWeights, stride: int
) -> Float[Array, "b _ _ c"]:
    """Each channel convolved on its own: x * kernel + bias, as a sum over the taps of the kernel.

    XLA fuses the sum; its grouped convolution takes ten times as long on CPUs.
    """
    taps = conv.kernel.shape[0]
    ends = [-(-size // stride) for size in x.shape[1:3]]
    padding = [
        max((end - 1) * stride + taps - size, 0)
        for end, size in zip(ends, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in padding), (0, 0)))
    rows, columns = ((end - 1) * stride + 1 for end in ends)
    y = jnp.asarray(conv.bias)
    for i in range(taps):
        for j in range(taps):
            window = x[:, i : i + rows : stride, j : j + columns : stride]
            y = y + window * jnp.asarray(conv.kernel)[i, j, 0]
    return y


def _conv(
    x: Float[Array, "b h w c"], conv: ConvWeights, *, stride: int = 1
) -> Float[Array, "b _ _ _"]:
    """x * kernel + bias; where padding is uneven, the larger part is below and to the right."""
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(conv.kernel),
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return y + jnp.asarray(conv.bias)
