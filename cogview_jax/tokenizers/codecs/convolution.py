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
#: What kernels start from.
KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
#: Channels from which a 4x4 stride-2 convolution is faster as a matrix product on CPUs.
WIDE = 256


class Convolution(nn.Module):
    """A convolution of `taps` x `taps` with bias.

    Attributes:
        features: channels of the output.
        taps: rows and columns of the kernel.
        stride: rows and columns of the input for one of the output.
        padding: rows and columns of zeros (before, after) the input; by default as many on both
            sides that only the stride shrinks.
        dtype: the type of the arithmetic.
        kernel_init: what the kernel starts from.
    """

    features: int
    taps: int
    stride: int = 1
    padding: tuple[int, int] | None = None
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = KERNEL_INIT

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """[b, h, w, c_in] -> [b, h / stride, w / stride, features]."""
        kernel, bias = conv_parameters(self, x.shape[-1], self.kernel_init)
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


def convolve(
    x: Float[Array | np.ndarray, "b h w c"],
    kernel: Float[Array | np.ndarray, "t t c f"],
    stride: int,
    padding: tuple[int, int],
) -> Float[Array, "b _ _ f"]:
    """The convolution of `Convolution` without its bias.

    XLA's CPU backend needs several times as long for the gradient of a kernel as for the
    convolution, because it takes the whole batch as one window. In float32 on one device other
    forms are faster there: sums over parts of the batch, and a matrix product for many channels.
    """
    if kernel.shape[0] == stride == 1:
        return jnp.asarray(x) @ kernel[0, 0]
    if x.dtype != jnp.float32 or jax.sharding.get_abstract_mesh().size > 1:
        return plain_convolution(x, kernel, stride, padding)
    return _convolve(x, kernel, stride, padding)


def plain_convolution(x: Any, kernel: Any, stride: int, padding: tuple[int, int]) -> jax.Array:
    """XLA's convolution; arguments as in `convolve`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def gathered(
    x: Float[Array | np.ndarray, "b H W c"], kernel: Float[Array | np.ndarray, "4 4 c f"]
) -> Float[Array, "b _ _ f"]:
    """[b, H / 2, W / 2, f]: the 4x4 stride-2 convolution of x in zeros, as a matrix product."""
    b, h, w, c = x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(b, h + 1, 2, w + 1, 2, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h + 1, w + 1, 4 * c)
    patches = jnp.concatenate([x[:, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)], axis=-1)
    taps = kernel.reshape(2, 2, 2, 2, c, -1).transpose(0, 2, 1, 3, 4, 5)
    return patches @ taps.reshape(16 * c, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Any, kernel: Any, stride: int, padding: tuple[int, int]) -> jax.Array:
    def plain(x: Any, kernel: Any) -> jax.Array:
        return plain_convolution(x, kernel, stride, padding)

    if _is_wide(x, kernel, stride, padding):
        return jax.lax.platform_dependent(x, kernel, cpu=gathered, default=plain)
    return plain(x, kernel)


def _is_wide(x: Any, kernel: Any, stride: int, padding: tuple[int, int]) -> bool:
    """Whether the form as a matrix product exists and is faster on CPUs."""
    fits = kernel.shape[0] == 4 and stride == 2 and padding == (1, 1)
    return fits and kernel.shape[2] >= WIDE and x.shape[1] % 2 == x.shape[2] % 2 == 0


def _forward(
    x: Any, kernel: Any, stride: int, padding: tuple[int, int]
) -> tuple[jax.Array, tuple[Any, Any]]:
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: tuple[int, int], inputs: tuple[Any, Any], g: Any
) -> tuple[jax.Array, jax.Array]:
    def plain(x: Any, kernel: Any, g: Any) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, k: plain_convolution(x, k, stride, padding), x, kernel)[1](g)

    def product(x: Any, kernel: Any, g: Any) -> tuple[jax.Array, jax.Array]:
        (to_kernel,) = jax.vjp(lambda k: gathered(x, k), kernel)[1](g)
        return scattered(g, kernel.swapaxes(2, 3)), to_kernel

    def in_parts(x: Any, kernel: Any, g: Any) -> tuple[jax.Array, jax.Array]:
        rows = -(-len(x) // BATCH_PARTS)
        parts = [slice(start, start + rows) for start in range(0, len(x), rows)]
        to_kernel = [plain(x[part], kernel, g[part])[1] for part in parts]
        return plain(x, kernel, g)[0], functools.reduce(jnp.add, to_kernel)

    x, kernel = inputs
    on_cpu = product if _is_wide(x, kernel, stride, padding) else in_parts
    return jax.lax.platform_dependent(x, kernel, g, cpu=on_cpu, default=plain)


_convolve.defvjp(_forward, _backward)


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


def conv_parameters(
    module: Any, channels_in: int, kernel_init: nn.initializers.Initializer = KERNEL_INIT
) -> tuple[Any, Any]:
    """The kernel [taps, taps, c_in, features] and bias [features] of a convolution module."""
    # The three channels of an image are never split: no mesh divides them.
    names = ("channels_in", "pixel" if module.features == 3 else "channels_out")
    kernel: Any = module.param(
        "kernel",
        nn.with_logical_partitioning(kernel_init, ("tap", "tap", *names)),
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
