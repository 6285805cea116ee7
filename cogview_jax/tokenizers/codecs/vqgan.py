"""The VQGAN: residual blocks with group norms, and attention at chosen levels.

Esser et al. 2021 (arXiv 2012.09841), in the form of CompVis' code, which LlamaGen (arXiv
2406.06525) and others share: their released weights can be read in (`cogview_jax.interop`).

Legend: b batch, H W rows and columns of pixels, h w those of a level, c channels, Z channels
between the encoder and the quantiser's projections, D width of a code.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import constrain
from cogview_jax.tokenizers.codecs.codec import CodecConfig
from cogview_jax.tokenizers.codecs.convolution import Convolution, UpsampledConvolution

#: Added to variances.
EPSILON = 1e-6
ZEROS = nn.initializers.zeros


@dataclass(frozen=True, kw_only=True)
class VQGANConfig(CodecConfig):
    """A VQGAN; the defaults are those of 16 x 16 pixels a code and 16,384 codes.

    Level 0 is that of the pixels, and every further level has half the rows and columns.

    Attributes:
        channels: of level 0, times its multiplier.
        multipliers: of `channels`, for each level of the encoder.
        decoder_multipliers: those of the decoder; empty for the encoder's.
        blocks: residual blocks of a level of the encoder; those of the decoder have one more.
        attention: levels with an attention after each residual block. The middle always has one.
        latent_channels: between encoder and quantiser, where a 1x1 convolution leads to
            `code_width`.
        norm_groups: groups of the group norms; divides the channels of every level.
    """

    kind: Literal["vqgan"] = "vqgan"
    codebook: int = 16_384
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_multipliers: tuple[int, ...] = ()
    blocks: int = 2
    attention: tuple[int, ...] = (4,)
    latent_channels: int = 256
    norm_groups: int = 32

    def __post_init__(self) -> None:
        require_range(self, "channels", "latent_channels", at_least=1, at_most=2**16)
        require_range(self, "multipliers", "decoder_multipliers", at_least=1, at_most=2**10)
        require_range(self, "blocks", at_least=1, at_most=2**10)
        require_range(self, "norm_groups", at_least=1, at_most=2**16)
        levels = len(self.multipliers)
        if not 2 <= levels <= 12:
            raise InputError(f"codec multipliers {self.multipliers}: expected 2 to 12 levels")
        if len(self.decoder_multipliers) not in (0, levels):
            raise InputError(
                f"codec decoder_multipliers {self.decoder_multipliers}: expected none, or as many"
                f" as multipliers {self.multipliers}"
            )
        require_range(self, "attention", at_least=0, at_most=levels - 1)
        for multiplier in {1, *self.multipliers, *self.decoder_multipliers}:
            if self.channels * multiplier % self.norm_groups:
                raise InputError(
                    f"codec norm_groups {self.norm_groups} does not divide {multiplier} x"
                    f" {self.channels} channels"
                )
        super().__post_init__()

    @property
    def downsampling(self) -> int:
        """Pixels along a side of a code."""
        return 1 << (len(self.multipliers) - 1)

    @property
    def depth(self) -> int:
        """How many arrays a model of these sizes has at least."""
        return len(self.multipliers) * self.blocks

    @property
    def encoder_parameters(self) -> tuple[str, ...]:
        """The encoder, and the projection to the code width (the original's quant_conv)."""
        return ("encoder", "encoder_out")

    @property
    def outer_channels(self) -> int:
        """Channels of the widest layer of the pixels' level."""
        return self.channels * max(self.multipliers[0], *self.decoder_level_multipliers[:2])

    @property
    def decoder_level_multipliers(self) -> tuple[int, ...]:
        """The decoder's multipliers, from the pixels inwards."""
        return self.decoder_multipliers or self.multipliers

    @property
    def encoder_multiply_adds(self) -> float:
        """Multiply-adds of the encoder, attention included, for an image of `image_size`."""
        down, cells = [self.channels * m for m in self.multipliers], self._cells
        total = cells[0] * 9 * 3 * self.channels
        into = self.channels
        for level, out in enumerate(down):
            total += self._level(cells[level], into, out, self.blocks, level)
            into = out
            if level + 1 < len(down):
                total += cells[level + 1] * 9 * out * out
        z, inner = self.latent_channels, cells[-1]
        total += self._middle(inner, into) + inner * (9 * into * z + z * self.code_width)
        return float(total)

    @property
    def decoder_multiply_adds(self) -> float:
        """Multiply-adds of the decoder, attention included, for an image of `image_size`."""
        up = [self.channels * m for m in self.decoder_level_multipliers]
        cells, z, into = self._cells, self.latent_channels, up[-1]
        total = cells[-1] * (z * self.code_width + 9 * z * into) + self._middle(cells[-1], into)
        for level, out in reversed(list(enumerate(up))):
            total += self._level(cells[level], into, out, self.blocks + 1, level)
            into = out
            if level:  # each pixel of the smaller level meets 16 taps
                total += cells[level] * 16 * out * out
        return float(total + cells[0] * 9 * into * 3)

    @property
    def _cells(self) -> list[int]:
        """Positions of each level, from the pixels inwards."""
        return [(self.image_size >> level) ** 2 for level in range(len(self.multipliers))]

    def _level(self, cells: int, into: int, out: int, blocks: int, level: int) -> int:
        """Of the residual blocks of a level, with their attention."""
        first = cells * (9 * into * out + 9 * out * out + into * out * (into != out))
        more = (blocks - 1) * cells * 18 * out * out
        return first + more + blocks * _attention_products(cells, out) * (level in self.attention)

    def _middle(self, cells: int, channels: int) -> int:
        return 2 * cells * 18 * channels**2 + _attention_products(cells, channels)

    def module(self, dtype: DTypeLike = jnp.float32) -> "VQGAN":
        """The encoder and decoder, computing in `dtype`."""
        return VQGAN(self, dtype)


def _attention_products(cells: int, channels: int) -> int:
    return cells * 4 * channels**2 + 2 * cells**2 * channels


class GroupNorm(nn.Module):
    """Normalises each group of channels over all positions of an image, in float32.

    The variance is the mean of squared differences: float32 rounding would show in the difference
    of two large means.
    """

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Leaves the shape as it is."""
        names = nn.with_logical_partitioning
        shape = (x.shape[-1],)
        scale: Any = self.param("scale", names(nn.initializers.ones, ("norm",)), shape, jnp.float32)
        bias: Any = self.param("bias", names(nn.initializers.zeros, ("norm",)), shape, jnp.float32)
        b, _, _, c = x.shape
        # Channels are summed over positions first: the last axis stays as long as it is, which
        # XLA's CPU backend needs for vector instructions.
        wide = x.astype(jnp.float32)

        def group_mean(values: jax.Array) -> jax.Array:
            channels = jnp.mean(values, axis=(1, 2)).reshape(b, self.groups, c // self.groups)
            means = jnp.mean(channels, axis=-1, keepdims=True)
            return jnp.broadcast_to(means, channels.shape).reshape(b, 1, 1, c)

        centred = wide - group_mean(wide)
        variance = group_mean(centred**2)
        normal = centred * jax.lax.rsqrt(variance + EPSILON)
        return (normal * scale + bias).astype(self.dtype)


class ResidualBlock(nn.Module):
    """shortcut(x) + conv(swish(norm(conv(swish(norm(x)))))).

    Blocks and attentions start as the identity, or the shortcut: the kernel that ends them is 0 at
    first (Ho et al. 2020, arXiv 2006.11239, in their code). The first steps are quicker for it.
    """

    features: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w _"]:
        """[b, h, w, c] -> [b, h, w, features]."""
        y = nn.swish(GroupNorm(self.groups, self.dtype, name="norm1")(x))
        y = Convolution(self.features, 3, dtype=self.dtype, name="conv1")(y)
        y = nn.swish(GroupNorm(self.groups, self.dtype, name="norm2")(y))
        y = Convolution(self.features, 3, dtype=self.dtype, name="conv2", kernel_init=ZEROS)(y)
        if x.shape[-1] != self.features:
            x = Convolution(self.features, 1, dtype=self.dtype, name="shortcut")(x)
        return x + y


class Attention(nn.Module):
    """x + attention of every position to all others: one head, as wide as the channels."""

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Leaves the shape as it is."""
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, self.dtype, name="norm")(x)
        q, k, v = (
            Convolution(c, 1, dtype=self.dtype, name=name)(y).reshape(b, h * w, c)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("btc,bsc->bts", q * c**-0.5, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        y = jnp.einsum("bts,bsc->btc", weights, v).reshape(x.shape)
        return x + Convolution(c, 1, dtype=self.dtype, name="out", kernel_init=ZEROS)(y)


class Middle(nn.Module):
    """A residual block, attention and a residual block at the smallest level."""

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Leaves the shape as it is."""
        x = ResidualBlock(x.shape[-1], self.groups, self.dtype, name="block_0")(x)
        x = Attention(self.groups, self.dtype, name="attention")(x)
        return ResidualBlock(x.shape[-1], self.groups, self.dtype, name="block_1")(x)


class Encoder(nn.Module):
    """Pixels [b, H, W, 3] -> latents [b, h, w, Z]."""

    config: VQGANConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w Z"]:
        """Pixels to latents."""
        config, dtype = self.config, self.dtype
        groups, last = config.norm_groups, len(config.multipliers) - 1
        x = Convolution(config.channels, 3, dtype=dtype, name="conv_in")(x)
        for level, multiplier in enumerate(config.multipliers):
            for i in range(config.blocks):
                name = f"level_{level}_block_{i}"
                x = ResidualBlock(config.channels * multiplier, groups, dtype, name=name)(x)
                if level in config.attention:
                    x = Attention(groups, dtype, name=f"level_{level}_attention_{i}")(x)
            if level < last:
                # A row of zeros below and a column right, as in the original.
                name = f"level_{level}_down"
                x = Convolution(x.shape[-1], 3, 2, (0, 1), dtype, name=name)(x)
        x = Middle(groups, dtype, name="middle")(x)
        x = nn.swish(GroupNorm(groups, dtype, name="norm_out")(x))
        return Convolution(config.latent_channels, 3, dtype=dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents [b, h, w, Z] -> what the last convolution reads, [b, H, W, c]."""

    config: VQGANConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w Z"]) -> Float[Array, "b H W c"]:
        """Latents to features of pixels."""
        config, dtype = self.config, self.dtype
        groups, multipliers = config.norm_groups, config.decoder_level_multipliers
        x = Convolution(config.channels * multipliers[-1], 3, dtype=dtype, name="conv_in")(x)
        x = Middle(groups, dtype, name="middle")(x)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for i in range(config.blocks + 1):
                name = f"level_{level}_block_{i}"
                x = ResidualBlock(config.channels * multiplier, groups, dtype, name=name)(x)
                if level in config.attention:
                    x = Attention(groups, dtype, name=f"level_{level}_attention_{i}")(x)
            if level:
                name = f"level_{level}_up"
                x = UpsampledConvolution(x.shape[-1], dtype=dtype, name=name)(x)
        return nn.swish(GroupNorm(groups, dtype, name="norm_out")(x))


class VQGAN(nn.Module):
    """The encoder and decoder; the interface is `codec.Codec`."""

    config: VQGANConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """The layers of both."""
        config, dtype = self.config, self.dtype
        self.encoder, self.decoder = Encoder(config, dtype), Decoder(config, dtype)
        self.encoder_out = Convolution(config.code_width, 1, dtype=dtype)
        self.decoder_in = Convolution(config.latent_channels, 1, dtype=dtype)
        self.decoder_out = Convolution(3, 3, dtype=dtype)

    def encode(self, pixels: Float[Array | np.ndarray, "b H W 3"]) -> Float[Array, "b h w D"]:
        """Normalised pixels [b, H, W, 3] -> encoder outputs, float32 [b, h, w, D]."""
        x = constrain(jnp.asarray(pixels), "batch", None, None, None)
        return self.encoder_out(self.encoder(x)).astype(jnp.float32)

    def features(self, vectors: Float[Array | np.ndarray, "b h w D"]) -> Float[Array, "b H W c"]:
        """Code vectors [b, h, w, D] -> what the last convolution reads, [b, H, W, c]."""
        x = constrain(jnp.asarray(vectors), "batch", None, None, None)
        return self.decoder(self.decoder_in(x))

    def pixels(self, features: Float[Array, "b H W c"]) -> Float[Array, "b H W 3"]:
        """The last convolution: features -> normalised pixels, float32 [b, H, W, 3]."""
        return self.decoder_out(features).astype(jnp.float32)

    def decode(self, vectors: Float[Array | np.ndarray, "b h w D"]) -> Float[Array, "b H W 3"]:
        """Code vectors [b, h, w, D] -> normalised pixels, float32 [b, H, W, 3]."""
        return self.pixels(self.features(vectors))

    def __call__(self, pixels: Float[Array | np.ndarray, "b H W 3"]) -> Float[Array, "b H W 3"]:
        """Encoder and decoder without quantisation: touches every parameter, for `init`."""
        return self.decode(self.encode(pixels))
