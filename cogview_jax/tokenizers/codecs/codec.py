"""Image tokenizers: an encoder, a quantiser and a decoder between pixels and a grid of codes.

What all kinds share: the settings, the interface of the encoder and decoder, and the way from
images to codes and back. Each kind has a file: `vqvae`, `vqgan`.

Legend: b batch, H W rows and columns of pixels, h w those of codes, D width of a code.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Real, UInt8

from cogview_jax.runtime.config import Tagged, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.quantisers.moving_average import MovingAverage
from cogview_jax.tokenizers.quantisers.quantiser import Quantiser

#: Pixels along a side of an image.
LARGEST_IMAGE = 1 << 14


@dataclass(frozen=True, kw_only=True)
class CodecConfig(Tagged, abc.ABC):
    """Sizes of an image tokenizer. A section without `kind` is the paper's, a `vqvae`.

    Attributes:
        kind: the architecture; a subclass fixes it, as `Literal`.
        image_size: height and width in pixels of the images of training, and of images where
            nothing says otherwise. Encoder and decoder take any multiple of `downsampling`.
        codebook: how many codes there are.
        code_width: numbers of a code's vector.
        quantiser: how vectors become codes.
        mean: of the pixels in [0, 1], by channel.
        std: standard deviation of the pixels in [0, 1], by channel.
    """

    #: Names of settings in bundles and runs of earlier versions, and what they are called now.
    RENAMED: ClassVar[Mapping[str, str]] = MappingProxyType({"deviation": "std"})
    default_kind: ClassVar[str | None] = "vqvae"

    kind: str
    image_size: int = 256
    codebook: int = 8192
    code_width: int = 256
    quantiser: Quantiser = MovingAverage()
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        require_range(self, "image_size", at_least=1, at_most=LARGEST_IMAGE)
        require_range(self, "code_width", at_least=1, at_most=2**16)
        require_range(self, "codebook", at_least=1, at_most=2**24)
        require_range(self, "mean")
        # Pixels are divided by it, in float32 and in narrower types.
        require_range(self, "std", at_least=1e-4)
        if self.image_size % self.downsampling:
            raise InputError(
                f"codec image_size {self.image_size} is no multiple of its downsampling"
                f" {self.downsampling}"
            )
        self.quantiser.check(self.codebook, self.code_width)

    @property
    @abc.abstractmethod
    def downsampling(self) -> int:
        """Pixels along a side of a code, a power of two."""

    @property
    @abc.abstractmethod
    def depth(self) -> int:
        """How many arrays a model of these sizes has at least."""

    @property
    @abc.abstractmethod
    def encoder_parameters(self) -> tuple[str, ...]:
        """Names of all parameters, or trees of them, that come before the codes."""

    @property
    @abc.abstractmethod
    def outer_channels(self) -> int:
        """Channels of the layers with the most positions, which decide the memory of an image."""

    @property
    @abc.abstractmethod
    def encoder_multiply_adds(self) -> float:
        """Multiply-adds of the encoder for an image of `image_size`."""

    @property
    @abc.abstractmethod
    def decoder_multiply_adds(self) -> float:
        """Multiply-adds of the decoder for an image of `image_size`."""

    @abc.abstractmethod
    def module(self, dtype: DTypeLike = jnp.float32) -> "Codec":
        """The encoder and decoder, computing in `dtype`."""

    @property
    def grid(self) -> int:
        """Rows and columns of the code grid of an image of `image_size`."""
        return self.image_size // self.downsampling


@runtime_checkable
class Codec(Protocol):
    """An encoder and decoder, a Linen module; pixels are normalised floats.

    The quantiser between the two is not part of it.
    """

    @property
    def config(self) -> Any:
        """A `CodecConfig`."""

    @property
    def dtype(self) -> DTypeLike:
        """The type of the arithmetic."""

    def init(self, *arguments: Any, **keywords: Any) -> Any:
        """Linen's: the variables of the module."""

    def apply(self, *arguments: Any, **keywords: Any) -> Any:
        """Linen's: a method of the module with given variables."""

    def encode(self, pixels: Float[Array | np.ndarray, "b H W 3"]) -> Float[Array, "b h w D"]:
        """Normalised pixels [b, H, W, 3] -> encoder outputs, float32 [b, h, w, D]."""

    def decode(self, vectors: Float[Array | np.ndarray, "b h w D"]) -> Float[Array, "b H W 3"]:
        """Code vectors [b, h, w, D] -> normalised pixels, float32 [b, H, W, 3]."""

    def features(self, vectors: Float[Array | np.ndarray, "b h w D"]) -> Float[Array, "b H W c"]:
        """Code vectors [b, h, w, D] -> what the last layer reads, [b, H, W, c].

        The last layer is a convolution with the parameters "decoder_out".
        """

    def pixels(self, features: Float[Array, "b H W c"]) -> Float[Array, "b H W 3"]:
        """The last layer: what `features` gives -> normalised pixels, float32 [b, H, W, 3]."""


def normalise(
    config: CodecConfig, images: Real[Array | np.ndarray, "b h w 3"]
) -> Float[Array, "b h w 3"]:
    """(value / 255 - mean) / std: images [b, h, w, 3] of 0 to 255 -> what the encoder reads."""
    mean, std = jnp.asarray(config.mean), jnp.asarray(config.std)
    return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def unclipped(
    config: CodecConfig, pixels: Float[Array | np.ndarray, "*b 3"]
) -> Float[Array, "*b 3"]:
    """Decoder outputs [b, h, w, 3] -> values that are 0 for black and 1 for white, float32.

    The decoder may go beyond both; so do the images that the release's `code2img` returns.
    """
    return jnp.asarray(pixels) * jnp.asarray(config.std) + jnp.asarray(config.mean)


def denormalise(
    config: CodecConfig, pixels: Float[Array | np.ndarray, "*b 3"]
) -> Float[Array, "*b 3"]:
    """Decoder outputs [b, h, w, 3] -> values in [0, 255], clipped and never stretched, float32."""
    return jnp.clip(unclipped(config, pixels) * 255, 0, 255)


def encode_images(
    codec: Codec,
    params: Mapping[str, Any],
    codebook: Any,
    images: UInt8[Array | np.ndarray, "b H W 3"],
) -> Int[Array, "b h w"]:
    """uint8 images [b, H, W, 3] -> codes int32 [b, h, w].

    Products are taken at the highest precision of `codec.dtype`: float32 means float32, also on
    accelerators that round to bfloat16 or TF32 by default, so that their codes are a CPU's.

    Args:
        codec: the encoder.
        params: its parameters, and those of the quantiser where it has any.
        codebook: the state of the quantiser.
        images: their sides are multiples of the codec's `downsampling`.
    """
    with jax.default_matmul_precision("highest"):
        pixels = normalise(codec.config, images)
        vectors = codec.apply({"params": params}, pixels, method=codec.encode)
    return codec.config.quantiser.encode(params.get("quantiser", {}), codebook, vectors)


def decode_codes(
    codec: Codec,
    params: Mapping[str, Any],
    codebook: Any,
    codes: Int[Array | np.ndarray, "b h w"],
) -> UInt8[Array, "b H W 3"]:
    """Codes int32 [b, h, w] -> uint8 images [b, H, W, 3]; arguments as in `encode_images`."""
    vectors = codec.config.quantiser.vectors(params.get("quantiser", {}), codebook, codes)
    pixels = codec.apply({"params": params}, vectors, method=codec.decode)
    return jnp.round(denormalise(codec.config, pixels)).astype(jnp.uint8)
