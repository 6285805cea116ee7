"""Convolutions of image tokenizers, in the forms that are fast on CPUs too.

XLA's CPU backend has no fast path for the gradient of a dilated convolution. Whatever doubles the
size of its input is therefore one matrix product over 2x2 neighbourhoods: each of the four output
parities is a 2x2 convolution. The weights are those of the plain form.

Legend: b batch, h w rows and columns, c channels.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

#: On CPUs the gradient of a kernel is summed over so many parts of a batch.
BATCH_PARTS = 8


class Convolution(nn.Module):
    """A convolution of `taps` x `taps` with bias.

    Attributes:
        features: channels of the output.
        taps: rows and columns of the kernel.
        stride: rows and columns of the input for one of the output.
        padding: rows and columns of zeros (before, after) the input; by default as many on both
            sides that only the stride shrinks.
        dtype: the type of the arithmetic.
    """

    features: int
    taps: int
    stride: int = 1
    padding: tuple[int, int] | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """[b, h, w, c_in] -> [b, h / stride, w / stride, features]."""
        kernel, bias = conv_parameters(self, x.shape[-1])
        both = (self.taps - self.stride + 1) // 2
        padding = (both, both) if self.padding is None else self.padding
        y = convolve(jnp.asarray(x, self.dtype), kernel.astype(self.dtype), self.stride, padding)
        return y + broadcast_bias(bias, y)


class TransposedConvolution(nn.Module):
    """A 4x4 stride-2 transposed convolution with bias.

    kernel[i, j] meets output row 2r + i - 1 for input row r (and so for columns).
    """

    features: int
    taps: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """[b, h, w, c_in] -> [b, 2h, 2w, features]."""
        kernel, bias = conv_parameters(self, x.shape[-1])
        y = scattered(jnp.asarray(x, self.dtype), kernel.astype(self.dtype))
        return y + broadcast_bias(bias, y)


class UpsampledConvolution(nn.Module):
    """Every pixel four times, then a 3x3 convolution with bias.

    Neighbours that are copies of one pixel meet the sum of their taps, so the pair is a 4x4
    transposed convolution: 16 products a pixel of the input instead of 36.
    """

    features: int
    taps: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """[b, h, w, c_in] -> [b, 2h, 2w, features]."""
        kernel, bias = conv_parameters(self, x.shape[-1])
        y = scattered(jnp.asarray(x, self.dtype), upsampling_kernel(kernel).astype(self.dtype))
        return y + broadcast_bias(bias, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "t t c f"],
    stride: int,
    padding: tuple[int, int],
) -> Float[Array, "b _ _ f"]:
    """The convolution without bias; `Convolution` has the arguments.

    XLA's CPU backend needs several times as long for the gradient of a kernel as for the
    convolution, because it takes the whole batch as one window. There, on one device and in
    float32, the gradient is the sum of those of parts of the batch.
    """
    return plain_convolution(x, kernel, stride, padding)


def plain_convolution(x: Any, kernel: Any, stride: int, padding: tuple[int, int]) -> jax.Array:
    """XLA's convolution; arguments as in `convolve`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolve_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride, padding), (x, kernel)


def _convolve_backward(
    stride: int, padding: tuple[int, int], inputs: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = inputs
    (dx,) = jax.vjp(lambda x: plain_convolution(x, kernel, stride, padding), x)[1](g)

    def whole(x: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda k: plain_convolution(x, k, stride, padding), kernel)[1](g)[0]

    def in_parts(x: jax.Array, g: jax.Array) -> jax.Array:
        rows = -(-len(x) // BATCH_PARTS)
        parts = [slice(start, start + rows) for start in range(0, len(x), rows)]
        return functools.reduce(jnp.add, [whole(x[part], g[part]) for part in parts])

    one_device = jax.sharding.get_abstract_mesh().size <= 1
    if kernel.shape[0] == 1 or len(x) == 1 or x.dtype != jnp.float32 or not one_device:
        return dx, whole(x, g)
    return dx, jax.lax.platform_dependent(x, g, cpu=in_parts, default=whole)


convolve.defvjp(_convolve_forward, _convolve_backward)


def upsampling_kernel(kernel: Float[Array | np.ndarray, "3 3 c f"]) -> Float[Array, "4 4 c f"]:
    """The 4x4 transposed form of doubling and a 3x3 convolution.

    Output row 2r + i - 1 reads input row r, which lies twice below the taps: as copy 2r at tap
    2 - i and as copy 2r + 1 at tap 3 - i of the three, where these exist.
    """
    kernel = jnp.asarray(kernel)
    for axis in (0, 1):
        turned = jnp.flip(kernel, axis)
        before = [(1, 0) if other == axis else (0, 0) for other in range(4)]
        after = [(0, 1) if other == axis else (0, 0) for other in range(4)]
        kernel = jnp.pad(turned, before) + jnp.pad(turned, after)
    return kernel


def scattered(
    x: Float[Array | np.ndarray, "b h w c"], kernel: Float[Array | np.ndarray, "4 4 c f"]
) -> Float[Array, "b 2*h 2*w f"]:
    """The 4x4 stride-2 transposed convolution: kernel[i, j] meets output row 2r + i - 1."""
    b, h, w, c = x.shape
    features = kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = jnp.concatenate(
        [x[:, i : i + h + 1, j : j + w + 1] for i in (0, 1) for j in (0, 1)], axis=-1
    )
    # Neighbourhood r makes output rows 2r - 1 and 2r of its padded rows r (taps 2 and 3) and r + 1
    # (taps 0 and 1). The first and the last row that they make are outside.
    taps = kernel.reshape(2, 2, 2, 2, c, features)[::-1, :, ::-1]
    taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(4 * c, 4 * features)
    y = (patches @ taps).reshape(b, h + 1, w + 1, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(b, 2 * h + 2, 2 * w + 2, features)[:, 1:-1, 1:-1]


def broadcast_bias(bias: Any, y: Any) -> jax.Array:
    """The bias in the shape and type of y; its gradient is summed in its own type, float32."""
    return jnp.broadcast_to(bias, y.shape).astype(y.dtype)


def conv_parameters(module: Any, channels_in: int) -> tuple[Any, Any]:
    """The kernel [taps, taps, c_in, features] and bias [features] of a convolution module."""
    # The three channels of an image are never split: no mesh divides them.
    names = ("channels_in", "pixel" if module.features == 3 else "channels_out")
    kernel: Any = module.param(
        "kernel",
        nn.with_logical_partitioning(
            nn.initializers.variance_scaling(1.0, "fan_in", "uniform"), ("tap", "tap", *names)
        ),
        (module.taps, module.taps, channels_in, module.features),
        jnp.float32,
    )
    bias: Any = module.param(
        "bias",
        nn.with_logical_partitioning(nn.initializers.zeros, names[1:]),
        (module.features,),
        jnp.float32,
    )
    return kernel, bias
