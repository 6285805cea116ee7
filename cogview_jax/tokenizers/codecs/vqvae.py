"""The paper's image tokenizer: a plain convolutional encoder and decoder.

The architecture is the paper's (arXiv 2105.13290, stage 1): 4x4 stride-2 convolutions with ReLU, a
1x1 convolution to the code width; the decoder mirrors it with transposed convolutions and ends in a
1x1 convolution to pixels. Optional residual blocks at the code grid, off in the paper's model,
widen what each code can see.

Legend: b batch, H W rows and columns of pixels, h w those of codes, c channels, D width of a code.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cogview_jax.runtime.config import SettingError, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import constrain
from cogview_jax.tokenizers.codecs.codec import CodecConfig
from cogview_jax.tokenizers.codecs.convolution import Convolution, TransposedConvolution


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(CodecConfig):
    """The paper's image tokenizer; the defaults are its sizes.

    Attributes:
        downsampling: pixels along a side of a code, a power of two.
        channels: of the convolutions: one number, or one for each halving from the pixels inwards.
        residual_blocks: residual blocks at the code grid, in encoder and decoder.
    """

    kind: Literal["vqvae"] = "vqvae"
    downsampling: int = 8
    channels: int | tuple[int, ...] = 512
    residual_blocks: int = 0
    mean: tuple[float, float, float] = (0.79093, 0.76271, 0.75340)
    std: tuple[float, float, float] = (0.30379, 0.32279, 0.32800)

    def __post_init__(self) -> None:
        require_range(self, "channels", at_least=1, at_most=2**16)
        require_range(self, "residual_blocks", at_least=0, at_most=2**10)
        if self.downsampling < 2 or self.downsampling & (self.downsampling - 1):
            raise SettingError(
                f"downsampling = {self.downsampling}: expected a power of two, at least 2"
            )
        super().__post_init__()
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
    def depth(self) -> int:
        """How many arrays a model of these sizes has at least."""
        return max(self.levels, self.residual_blocks)

    @property
    def encoder_parameters(self) -> tuple[str, ...]:
        """The convolutions, the residual blocks, and the projection to the code width."""
        convs = (f"encoder_convs_{level}" for level in range(self.levels))
        blocks = (f"encoder_blocks_{block}" for block in range(self.residual_blocks))
        return (*convs, *blocks, "encoder_out")

    @property
    def outer_channels(self) -> int:
        """Channels of the outermost convolutions."""
        return self.level_channels[0]

    @property
    def encoder_multiply_adds(self) -> float:
        """Multiply-adds of the encoder's convolutions for an image of `image_size`."""
        channels, size = (3, *self.level_channels), self.image_size
        total = self._block_multiply_adds + self.grid**2 * channels[-1] * self.code_width
        for level, (outer, deeper) in enumerate(itertools.pairwise(channels)):
            total += 16 * (size >> (level + 1)) ** 2 * outer * deeper
        return float(total)

    @property
    def decoder_multiply_adds(self) -> float:
        """Multiply-adds of the decoder's convolutions for an image of `image_size`."""
        channels, size, into = self.level_channels, self.image_size, self.code_width
        total = self._block_multiply_adds
        if self.residual_blocks:
            total += self.grid**2 * 9 * into * channels[-1]
            into = channels[-1]
        for level, out in reversed(list(enumerate(channels))):
            total += 16 * (size >> (level + 1)) ** 2 * into * out
            into = out
        return float(total + size**2 * into * 3)

    @property
    def _block_multiply_adds(self) -> int:
        """Of the residual blocks of either part."""
        return self.residual_blocks * self.grid**2 * 10 * self.level_channels[-1] ** 2

    def module(self, dtype: DTypeLike = jnp.float32) -> "VQVAE":
        """The encoder and decoder, computing in `dtype`."""
        return VQVAE(self, dtype)


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))): [b, h, w, c] -> [b, h, w, c]."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Leaves the shape as it is."""
        x = jnp.asarray(x)
        y = Convolution(x.shape[-1], taps=3, dtype=self.dtype, name="wide")(nn.relu(x))
        return x + Convolution(x.shape[-1], taps=1, dtype=self.dtype, name="narrow")(nn.relu(y))


class VQVAE(nn.Module):
    """The encoder and decoder; the interface is `codec.Codec`."""

    config: VQVAEConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """The layers of both."""
        channels, blocks = self.config.level_channels, self.config.residual_blocks
        self.encoder_convs = [Convolution(c, 4, 2, dtype=self.dtype) for c in channels]
        self.encoder_blocks = [ResidualBlock(self.dtype) for _ in range(blocks)]
        self.encoder_out = Convolution(self.config.code_width, 1, dtype=self.dtype)
        if blocks:
            self.decoder_in = Convolution(channels[-1], 3, dtype=self.dtype)
        self.decoder_blocks = [ResidualBlock(self.dtype) for _ in range(blocks)]
        self.decoder_convs = [
            TransposedConvolution(c, dtype=self.dtype) for c in reversed(channels)
        ]
        self.decoder_out = Convolution(3, 1, dtype=self.dtype)

    def encode(self, pixels: Float[Array | np.ndarray, "b H W 3"]) -> Float[Array, "b h w D"]:
        """Normalised pixels [b, H, W, 3] -> encoder outputs, float32 [b, h, w, D]."""
        x = constrain(jnp.asarray(pixels), "batch", None, None, None)
        for conv in self.encoder_convs:
            x = nn.relu(conv(x))
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_out(x).astype(jnp.float32)

    def features(self, vectors: Float[Array | np.ndarray, "b h w D"]) -> Float[Array, "b H W c"]:
        """Code vectors [b, h, w, D] -> what the last convolution reads, [b, H, W, c]."""
        x = constrain(jnp.asarray(vectors), "batch", None, None, None)
        if self.config.residual_blocks:
            x = self.decoder_in(x)
        for block in self.decoder_blocks:
            x = block(x)
        if self.config.residual_blocks:
            x = nn.relu(x)
        for conv in self.decoder_convs:
            x = nn.relu(conv(x))
        return x

    def pixels(self, features: Float[Array, "b H W c"]) -> Float[Array, "b H W 3"]:
        """The last convolution: features -> normalised pixels, float32 [b, H, W, 3]."""
        return self.decoder_out(features).astype(jnp.float32)

    def decode(self, vectors: Float[Array | np.ndarray, "b h w D"]) -> Float[Array, "b H W 3"]:
        """Code vectors [b, h, w, D] -> normalised pixels, float32 [b, H, W, 3]."""
        return self.pixels(self.features(vectors))

    def __call__(self, pixels: Float[Array | np.ndarray, "b H W 3"]) -> Float[Array, "b H W 3"]:
        """Encoder and decoder without quantisation: touches every parameter, for `init`."""
        return self.decode(self.encode(pixels))
