"""PatchGAN: a convolutional discriminator that judges overlapping patches (arXiv 1611.07004).

It is the discriminator of VQGAN (Esser et al. 2021, arXiv 2012.09841): 4x4 convolutions with
padding 1 and LeakyReLU, the last two of stride 1, with a normalisation behind all but the first
and the last. What a normalisation keeps between calls comes in and goes out as a value.

Legend: b batch, h w rows and columns, c channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from cogview_jax.runtime.config import SettingError, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import constrain

TAPS, SLOPE, INIT_STD = 4, 0.2, 0.02
#: Channels grow up to so many times the first layer's.
MOST_MULTIPLE = 8
#: Added to the variance, and the weight of a new batch in the running statistics, as in PyTorch.
EPSILON, MOMENTUM = 1e-5, 0.1
#: Added to the standard deviation by which ActNorm divides.
ACTNORM_EPSILON = 1e-6


class LayerSizes(NamedTuple):
    """A convolution: its output channels, stride, and whether it has a bias and a norm behind."""

    features: int
    stride: int
    bias: bool
    normed: bool


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a discriminator; the defaults are those of the released VQGAN.

    Attributes:
        channels: of the first layer; each further one has twice as many, up to eight times.
        layers: convolutions that halve the image. Two more of stride 1 follow.
        norm: "batch" (BatchNorm), "actnorm" (a scale and shift that start from the first batch),
            "group" (GroupNorm, which keeps nothing between calls), or "none".
        groups: of channels, for "group".
    """

    channels: int = 64
    layers: int = 3
    norm: Literal["batch", "actnorm", "group", "none"] = "batch"
    groups: int = 32

    def __post_init__(self):
        require_range(self, "channels", "groups", at_least=1, at_most=2**16)
        require_range(self, "layers", at_least=1, at_most=16)
        if self.norm not in (choices := ("batch", "actnorm", "group", "none")):
            raise SettingError(f"norm = {self.norm!r}: choices are {', '.join(choices)}")
        if self.norm == "group":
            for layer in self.sizes:
                if layer.normed and layer.features % self.groups:
                    raise SettingError(
                        f"groups = {self.groups}: expected a divisor of the {layer.features}"
                        " channels of a layer"
                    )

    @property
    def sizes(self) -> tuple[LayerSizes, ...]:
        """Every convolution in order."""
        bias = self.norm != "batch"  # BatchNorm would subtract it again
        inner = [
            LayerSizes(
                self.channels * min(2**i, MOST_MULTIPLE), 2 if i < self.layers else 1, bias, True
            )
            for i in range(1, self.layers + 1)
        ]
        return (
            LayerSizes(self.channels, 2, True, False),
            *inner,
            LayerSizes(1, 1, True, False),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of logits for images of that size.

        Raises:
            InputError: the images are too small.
        """
        # (n + 2 padding - taps) // stride + 1, with padding 1.
        sizes = [(n >> self.layers) - 2 for n in (height, width)]
        if min(sizes) < 1:
            raise InputError(
                f"images of {height} x {width} pixels are too small for a discriminator with"
                f" {self.layers} layers: expected at least {3 << self.layers} along each side"
            )
        return sizes[0], sizes[1]


class BatchNormState(NamedTuple):
    """Running mean [c], running variance [c] (unbiased), and how many batches they have seen."""

    mean: Any
    var: Any
    batches: Any


class ActNormState(NamedTuple):
    """What the first batch adds to the parameters loc [c] and scale [c], and whether it has come.

    The parameters alone are trained; apart from them, the start that depends on data is state, and
    a training step stays a function from state to state.
    """

    loc: Any
    scale: Any
    initialised: Any


#: Name of a layer's norm -> what it keeps between calls.
DiscriminatorState = dict[str, BatchNormState | ActNormState]


def norm_name(layer: int) -> str:
    """The name of the norm behind convolution number `layer`, in parameters and state."""
    return f"norm_{layer}"


def conv_name(layer: int) -> str:
    """The name of convolution number `layer` in the parameters."""
    return f"conv_{layer}"


def initial_state(config: DiscriminatorConfig) -> DiscriminatorState:
    """What the norms keep before the first batch: empty for "group" and "none"."""

    def state(c: int) -> BatchNormState | ActNormState:
        if config.norm == "batch":
            return BatchNormState(jnp.zeros(c), jnp.ones(c), jnp.int32(0))
        return ActNormState(jnp.zeros(c), jnp.zeros(c), jnp.bool_(False))

    if config.norm not in ("batch", "actnorm"):
        return {}
    return {
        norm_name(i): state(layer.features) for i, layer in enumerate(config.sizes) if layer.normed
    }


class Discriminator(nn.Module):
    """The network: images and its state to a logit for each patch and the next state.

    dtype: in which convolutions are computed. Parameters, norms and logits are float32.
    """

    config: DiscriminatorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        state: DiscriminatorState,
        train: bool,
    ) -> tuple[Float[Array, "b rows columns"], DiscriminatorState]:
        """Logits, float32 [b, rows, columns], large for real images; and the state after the call.

        Args:
            images: in [-1, 1].
            state: see `initial_state`.
            train: BatchNorm then uses this batch's statistics and moves the running ones, and
                ActNorm starts from this batch if none has come before. Otherwise both use what they
                have, and the state stays as it is. Statistics are those of all `images`: real and
                generated ones are two calls.

        Raises:
            InputError: the images are too small.
        """
        self.config.grid(*images.shape[1:3])
        state = dict(state)
        x = constrain(jnp.asarray(images, self.dtype), "batch", None, None, None)
        for i, layer in enumerate(self.config.sizes):
            x = PatchConvolution(layer, self.dtype, name=conv_name(i))(x)
            if layer.normed and self.config.norm != "none":
                x = self._normed(x, i, state, train)
            if i < len(self.config.sizes) - 1:
                # At 0 the slope is that of negative values, as in PyTorch.
                x = jnp.where(x > 0, x, SLOPE * x)
        return x[..., 0].astype(jnp.float32), state

    def _normed(self, x: Any, i: int, state: DiscriminatorState, train: bool) -> jax.Array:
        """x behind norm number i, whose new state is put into `state`."""
        name = norm_name(i)
        y = x.astype(jnp.float32)
        if self.config.norm == "group":
            y = GroupNorm(self.config.groups, name=name)(y)
        else:
            norm: Any = BatchNorm if self.config.norm == "batch" else ActNorm
            y, state[name] = norm(name=name)(y, state[name], train)
        return y.astype(self.dtype)


class PatchConvolution(nn.Module):
    """A 4x4 convolution with padding 1: [b, h, w, c] -> [b, (h - 2) // stride + 1, ..., features].

    Its kernel starts from a normal of standard deviation 0.02, its bias, if it has one, from the
    uniform distribution that PyTorch gives it.
    """

    layer: LayerSizes
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Computed in `dtype`."""
        features, channels = self.layer.features, x.shape[-1]
        # A single channel of logits is never split.
        out = "channels_out" if features > 1 else "pixel"
        kernel: Any = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(INIT_STD), ("tap", "tap", "channels_in", out)
            ),
            (TAPS, TAPS, channels, features),
            jnp.float32,
        )
        stride = self.layer.stride
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(self.dtype),
            window_strides=(stride, stride),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if not self.layer.bias:
            return y
        start = uniform((TAPS * TAPS * channels) ** -0.5)
        bias = named_vector(self, "bias", start, features, out)
        # Spread before it is cast: its gradient is then a sum in float32.
        return y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) x scale + bias, with statistics over batch and positions."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], state: BatchNormState, train: bool
    ) -> tuple[Float[Array, "b h w c"], BatchNormState]:
        """The normalised values, and the running statistics after the call."""
        c = x.shape[-1]
        scale = named_vector(self, "scale", normal_around_one, c)
        bias = named_vector(self, "bias", nn.initializers.zeros, c)
        mean, var = state.mean, state.var
        if train:
            # At least 4: behind a norm one more convolution has to find a whole window.
            count = x.size // c
            mean = jnp.mean(x, axis=(0, 1, 2))
            var = jnp.mean((x - mean) ** 2, axis=(0, 1, 2))
            state = jax.lax.stop_gradient(
                BatchNormState(
                    (1 - MOMENTUM) * state.mean + MOMENTUM * mean,
                    (1 - MOMENTUM) * state.var + MOMENTUM * var * (count / (count - 1)),
                    state.batches + 1,
                )
            )
        return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + bias, state


class ActNorm(nn.Module):
    """scale x (x + loc), where the first batch comes out with mean 0 and variance 1.

    Kingma & Dhariwal 2018, arXiv 1807.03039. The standard deviation is the unbiased one, and no
    gradient goes through what the first batch sets.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], state: ActNormState, train: bool
    ) -> tuple[Float[Array, "b h w c"], ActNormState]:
        """The normalised values, and the state after the call."""
        c = x.shape[-1]
        loc = named_vector(self, "loc", nn.initializers.zeros, c)
        scale = named_vector(self, "scale", nn.initializers.ones, c)
        if train:
            first, given = jax.lax.stop_gradient((x, (loc, scale)))

            def start() -> ActNormState:
                mean = jnp.mean(first, axis=(0, 1, 2))
                std = jnp.std(first, axis=(0, 1, 2), ddof=1)
                found = 1 / (std + ACTNORM_EPSILON)
                return ActNormState(-mean - given[0], found - given[1], jnp.bool_(True))

            state = jax.lax.cond(state.initialised, lambda: state, start)
        return (scale + state.scale) * (x + (loc + state.loc)), state


class GroupNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) x scale + bias, with statistics of each image's groups."""

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Keeps nothing between calls."""
        b, h, w, c = x.shape
        scale = named_vector(self, "scale", nn.initializers.ones, c)
        bias = named_vector(self, "bias", nn.initializers.zeros, c)
        y = x.reshape(b, h, w, self.groups, c // self.groups)
        mean = jnp.mean(y, axis=(1, 2, 4), keepdims=True)
        var = jnp.mean((y - mean) ** 2, axis=(1, 2, 4), keepdims=True)
        return ((y - mean) * jax.lax.rsqrt(var + EPSILON)).reshape(x.shape) * scale + bias


def named_vector(
    module: nn.Module, name: str, start: Callable, size: int, axis: str = "channels_out"
) -> Any:
    """A parameter [size] of a module, float32, with its logical axis."""
    return module.param(name, nn.with_logical_partitioning(start, (axis,)), (size,), jnp.float32)


def uniform(bound: float) -> Callable[..., jax.Array]:
    """An initialiser: the uniform distribution between -bound and bound."""

    def start(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return start


def normal_around_one(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """An initialiser: the normal distribution of mean 1 and standard deviation 0.02."""
    return 1 + INIT_STD * jax.random.normal(key, shape, dtype)
