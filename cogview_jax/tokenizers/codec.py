"""The image tokenizer: a convolutional VQ-VAE between pixels and a grid of codes.

The architecture is the paper's (stage 1): 4x4 stride-2 convolutions with ReLU, a 1x1 convolution to
the code width; the decoder mirrors it with transposed convolutions and ends in a 1x1 convolution to
pixels. Optional residual blocks at the code grid, off in the paper's model, widen what each code
can see.

Legend: b batch, h w rows and columns, c channels, K codebook size, D code width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cogview_jax.runtime.config import SettingError, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import constrain
from cogview_jax.tokenizers.quantiser import Codebook, nearest

#: Pixels along a side of an image.
LARGEST_IMAGE = 1 << 14


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of an image tokenizer; the defaults are the paper's.

    Attributes:
        image_size: height and width of an image in pixels.
        downsampling: pixels along a side of a code, a power of two.
        channels: of the convolutions: one number, or one for each halving from the pixels inwards.
        residual_blocks: residual blocks at the code grid, in encoder and decoder.
        codebook: how many codes there are.
        code_width: numbers of a code's vector.
        mean: of the pixels in [0, 1], by channel.
        std: standard deviation of the pixels in [0, 1], by channel.
    """

    #: Names of settings in bundles and runs of earlier versions, and what they are called now.
    RENAMED: ClassVar[Mapping[str, str]] = MappingProxyType({"deviation": "std"})

    image_size: int = 256
    downsampling: int = 8
    channels: int | tuple[int, ...] = 512
    residual_blocks: int = 0
    codebook: int = 8192
    code_width: int = 256
    mean: tuple[float, float, float] = (0.79093, 0.76271, 0.75340)
    std: tuple[float, float, float] = (0.30379, 0.32279, 0.32800)

    def __post_init__(self):
        require_range(self, "image_size", at_least=1, at_most=LARGEST_IMAGE)
        require_range(self, "code_width", "channels", at_least=1, at_most=2**16)
        require_range(self, "codebook", at_least=1, at_most=2**24)
        require_range(self, "residual_blocks", at_least=0, at_most=2**10)
        require_range(self, "mean")
        # Pixels are divided by it, in float32 and in narrower types.
        require_range(self, "std", at_least=1e-4)
        if self.downsampling < 2 or self.downsampling & (self.downsampling - 1):
            raise SettingError(
                f"downsampling = {self.downsampling}: expected a power of two, at least 2"
            )
        if self.image_size % self.downsampling:
            raise InputError(
                f"codec image_size {self.image_size} is no multiple of its downsampling"
                f" {self.downsampling}"
            )
        if not isinstance(self.channels, int) and len(self.channels) != self.levels:
            raise InputError(
                f"codec channels {self.channels}: expected one number or {self.levels}, one for"
                " each halving"
            )

    @property
    def levels(self) -> int:
        """How often the image is halved."""
        return int(math.log2(self.downsampling))

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, from the pixels inwards."""
        if isinstance(self.channels, int):
            return (self.channels,) * self.levels
        return tuple(self.channels)

    @property
    def grid(self) -> int:
        """Rows and columns of the code grid."""
        return self.image_size // self.downsampling


class Convolution(nn.Module):
    """A convolution of `taps` x `taps` with bias, padded so that only the stride shrinks."""

    features: int
    taps: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c_in] -> [b, h / stride, w / stride, features]."""
        kernel, bias = conv_parameters(self, x.shape[-1])
        padding = (self.taps - self.stride + 1) // 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + broadcast_bias(bias, y)


class TransposedConvolution(nn.Module):
    """A 4x4 stride-2 transposed convolution with bias.

    kernel[i, j] meets output row 2r + i - 1 for input row r (and so for columns). Written as one
    matrix product over 2x2 neighbourhoods: each of the four output parities is a 2x2 convolution.
    XLA's CPU backend has no fast path for the gradient of a dilated convolution; this form is
    several times faster there, with the same weights.
    """

    features: int
    taps: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c_in] -> [b, 2h, 2w, features]."""
        b, h, w, c = x.shape
        kernel, bias = conv_parameters(self, c)
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = jnp.concatenate(
            [x[:, i : i + h + 1, j : j + w + 1] for i in (0, 1) for j in (0, 1)], axis=-1
        )
        # Output row 2r + p reads padded rows r + p (tap 3 - p) and r + p + 1 (tap 1 - p).
        taps = kernel[::-1, ::-1].reshape(2, 2, 2, 2, c, self.features)
        taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(4 * c, 4 * self.features)
        y = (patches @ taps.astype(self.dtype)).reshape(b, h + 1, w + 1, 2, 2, self.features)
        y = jnp.stack(
            [jnp.stack([y[:, p : p + h, q : q + w, p, q] for q in (0, 1)], axis=3) for p in (0, 1)],
            axis=2,
        )
        y = y.reshape(b, 2 * h, 2 * w, self.features)
        return y + broadcast_bias(bias, y)


def broadcast_bias(bias: jax.Array, y: jax.Array) -> jax.Array:
    """The bias in the shape and type of y; its gradient is summed in its own type, float32."""
    return jnp.broadcast_to(bias, y.shape).astype(y.dtype)


def conv_parameters(module: nn.Module, channels_in: int) -> tuple[jax.Array, jax.Array]:
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


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))): [b, h, w, c] -> [b, h, w, c]."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Leaves the shape as it is."""
        y = Convolution(x.shape[-1], taps=3, dtype=self.dtype, name="wide")(nn.relu(x))
        return x + Convolution(x.shape[-1], taps=1, dtype=self.dtype, name="narrow")(nn.relu(y))


class Codec(nn.Module):
    """The encoder and decoder; pixels are normalised floats, and the codebook stays outside."""

    config: CodecConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """The layers of both."""
        channels, blocks = self.config.level_channels, self.config.residual_blocks
        self.encoder_convs = [Convolution(c, 4, 2, self.dtype) for c in channels]
        self.encoder_blocks = [ResidualBlock(self.dtype) for _ in range(blocks)]
        self.encoder_out = Convolution(self.config.code_width, 1, dtype=self.dtype)
        if blocks:
            self.decoder_in = Convolution(channels[-1], 3, dtype=self.dtype)
        self.decoder_blocks = [ResidualBlock(self.dtype) for _ in range(blocks)]
        self.decoder_convs = [
            TransposedConvolution(c, dtype=self.dtype) for c in reversed(channels)
        ]
        self.decoder_out = Convolution(3, 1, dtype=self.dtype)

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [b, H, W, 3] -> encoder outputs, float32 [b, h, w, D]."""
        x = constrain(pixels, "batch", None, None, None)
        for conv in self.encoder_convs:
            x = nn.relu(conv(x))
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_out(x).astype(jnp.float32)

    def decode(self, vectors: jax.Array) -> jax.Array:
        """Code vectors [b, h, w, D] -> normalised pixels, float32 [b, H, W, 3]."""
        x = constrain(vectors, "batch", None, None, None)
        if self.config.residual_blocks:
            x = self.decoder_in(x)
        for block in self.decoder_blocks:
            x = block(x)
        if self.config.residual_blocks:
            x = nn.relu(x)
        for conv in self.decoder_convs:
            x = nn.relu(conv(x))
        return self.decoder_out(x).astype(jnp.float32)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Encoder and decoder without quantisation: touches every parameter, for `init`."""
        return self.decode(self.encode(pixels))


def normalise(config: CodecConfig, images: jax.Array) -> jax.Array:
    """(value / 255 - mean) / std: uint8 images [b, h, w, 3] -> what the encoder reads."""
    mean, std = jnp.asarray(config.mean), jnp.asarray(config.std)
    return (images.astype(jnp.float32) / 255 - mean) / std


def unclipped(config: CodecConfig, pixels: jax.Array) -> jax.Array:
    """Decoder outputs [b, h, w, 3] -> values that are 0 for black and 1 for white, float32.

    The decoder may go beyond both; so do the images that the release's `code2img` returns.
    """
    return pixels * jnp.asarray(config.std) + jnp.asarray(config.mean)


def denormalise(config: CodecConfig, pixels: jax.Array) -> jax.Array:
    """Decoder outputs [b, h, w, 3] -> values in [0, 255], clipped and never stretched, float32."""
    return jnp.clip(unclipped(config, pixels) * 255, 0, 255)


def encode_images(codec: Codec, params: dict, codebook: Codebook, images: jax.Array) -> jax.Array:
    """uint8 images [b, h, w, 3] -> codes int32 [b, rows, columns].

    Products are taken at the highest precision of `codec.dtype`: float32 means float32, also on
    accelerators that round to bfloat16 or TF32 by default, so that their codes are a CPU's.
    """
    with jax.default_matmul_precision("highest"):
        pixels = normalise(codec.config, images)
        vectors: Any = codec.apply({"params": params}, pixels, method=codec.encode)
    return nearest(codebook.codes, vectors)


def decode_codes(codec: Codec, params: dict, codebook: Codebook, codes: jax.Array) -> jax.Array:
    """Codes int32 [b, rows, columns] -> uint8 images [b, h, w, 3]."""
    pixels: Any = codec.apply({"params": params}, codebook.codes[codes], method=codec.decode)
    return jnp.round(denormalise(codec.config, pixels)).astype(jnp.uint8)
