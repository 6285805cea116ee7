"""The loss of VQGAN: reconstruction, a perceptual distance, and a discriminator's judgement.

Esser et al. 2021, arXiv 2012.09841, section 3.1, as taming-transformers and LlamaGen compute it.
The generator is the encoder and decoder. Its turn needs two gradients at the reconstruction, whose
sum then goes through the decoder once; the weight of the adversarial term, which compares the
gradients of the decoder's last layer, needs no pass of its own.

Legend: b images, h w rows and columns of pixels, c channels, rows columns of the discriminator's
patches. Images are in [-1, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cogview_jax.models.networks.lpips import LpipsWeights, lpips
from cogview_jax.runtime.config import SettingError, require_range
from cogview_jax.training.gan_losses import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    discriminator_loss,
    generator_loss,
)

#: The largest adaptive weight, and what is added to the norm that it is divided by.
LARGEST_WEIGHT, EPSILON = 1e4, 1e-4

#: Images and a state -> logits and the next state.
Discriminate = Callable[[Any, Any], tuple[Array, Any]]


@dataclass(frozen=True)
class AdversarialConfig:
    """The terms of the loss; the defaults are those of the released VQGAN.

    Attributes:
        reconstruction: "l1" or "l2", over pixels in [-1, 1].
        perceptual_weight: of LPIPS; 0 for none.
        generator_loss: "hinge" (minus the mean logit, which taming-transformers takes for all
            discriminators) or "non_saturating".
        discriminator_loss: "hinge" or "vanilla"; "non_saturating" is another name of "vanilla".
        weight: of the adversarial term in the generator's loss.
        adaptive: whether that weight is also multiplied by `adaptive_weight`.
        start_step: the first step in which the adversarial terms count.
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    perceptual_weight: float = 1.0
    generator_loss: Literal["hinge", "non_saturating"] = "hinge"
    discriminator_loss: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    weight: float = 0.8
    adaptive: bool = True
    start_step: int = 0

    def __post_init__(self) -> None:
        require_range(self, "perceptual_weight", "weight", at_least=0)
        require_range(self, "start_step", at_least=0)
        choices = {
            "reconstruction": ("l1", "l2"),
            "generator_loss": tuple(GENERATOR_LOSSES),
            "discriminator_loss": tuple(DISCRIMINATOR_LOSSES),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise SettingError(
                    f"{name} = {getattr(self, name)!r}: choices are {', '.join(known)}"
                )


# ---- reconstruction


def perceptual_reconstruction(
    images: Float[Array | np.ndarray, "b h w 3"],
    decoded: Float[Array | np.ndarray, "b h w 3"],
    weights: LpipsWeights | None,
    config: AdversarialConfig = AdversarialConfig(),
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """The mean absolute or squared error of pixels plus the weighted LPIPS, of each image.

    The mean over images is the negative log-likelihood (nll) of taming-transformers, which it also
    calls rec_loss, and the first two terms of LlamaGen's loss.

    Args:
        images: in [-1, 1].
        decoded: their reconstructions.
        weights: of LPIPS; None where `config.perceptual_weight` is 0.
        config: which error, and the weight of LPIPS.
        dtype: in which LPIPS computes convolutions.

    Returns:
        The loss of each image, and its terms without their weights: `reconstruction` and, if it
        counts, `perceptual`.
    """
    error = decoded.astype(jnp.float32) - images
    error = jnp.abs(error) if config.reconstruction == "l1" else error**2
    terms = {"reconstruction": jnp.mean(error, axis=(1, 2, 3))}
    loss = terms["reconstruction"]
    if config.perceptual_weight > 0:
        assert weights is not None, "a perceptual loss needs the weights of LPIPS"
        terms["perceptual"] = lpips(weights, images, decoded, dtype)
        loss = loss + config.perceptual_weight * terms["perceptual"]
    return loss, terms


# ---- the weight of the adversarial term


def adaptive_weight(nll_gradient: Array, g_gradient: Array) -> Float[Array, ""]:
    """clamp(|nll_gradient| / (|g_gradient| + 1e-4), 0, 1e4), float32; no gradient goes through it.

    Args:
        nll_gradient: of the reconstruction loss for the kernel of the decoder's last layer.
        g_gradient: of the adversarial term for the same kernel.
    """
    nll, g = (
        jnp.linalg.norm(gradient.astype(jnp.float32).reshape(-1))
        for gradient in (nll_gradient, g_gradient)
    )
    return jax.lax.stop_gradient(jnp.clip(nll / (g + EPSILON), 0, LARGEST_WEIGHT))


def last_kernel_gradients(
    features: Float[Array | np.ndarray, "b h w c"],
    kernel: Float[Array | np.ndarray, "taps taps c out"],
    *cotangents: Float[Array | np.ndarray, "b h w out"],
) -> tuple[Float[Array, "taps taps c out"], ...]:
    """The gradient for the kernel of the decoder's last layer, for each cotangent of its output.

    The layer is a convolution of stride 1 whose padding keeps the size. Its output is linear in its
    kernel, so each gradient is a product of what went into the layer with the cotangent, and the
    decoder is not gone through again. Neither the kernel's values nor a bias matter.

    Args:
        features: the input of the last layer.
        kernel: of the last layer, with an odd number of taps.
        cotangents: gradients of some scalars for the layer's output.

    Returns:
        One gradient for each cotangent, float32.
    """
    taps, channels, outputs = kernel.shape[0], kernel.shape[2], kernel.shape[3]
    # Each is scaled into the range of the features' type, which may be narrow, and back.
    largest = [jnp.max(jnp.abs(each)).astype(jnp.float32) for each in cotangents]
    scales = [jnp.where(size > 0, size, 1) for size in largest]
    scaled = zip(cotangents, scales, strict=True)
    joined = jnp.concatenate([(x / scale).astype(features.dtype) for x, scale in scaled], axis=-1)
    # A tap (i, j) of the kernel sees the features shifted by it. The few channels of the cotangents
    # are shifted the other way instead: one matrix product, for which the features are read once.
    h, w = features.shape[1:3]
    around = taps // 2
    padded = jnp.pad(joined, ((0, 0), (around, around), (around, around), (0, 0)))
    shifted = [
        padded[:, taps - 1 - i : taps - 1 - i + h, taps - 1 - j : taps - 1 - j + w]
        for i in range(taps)
        for j in range(taps)
    ]
    products = jax.lax.dot_general(
        features,
        jnp.concatenate(shifted, axis=-1),
        (((0, 1, 2), (0, 1, 2)), ((), ())),
        preferred_element_type=jnp.float32,
    ).reshape(channels, taps, taps, len(cotangents), outputs)
    return tuple(
        products[:, :, :, i].transpose(1, 2, 0, 3) * scale for i, scale in enumerate(scales)
    )


# ---- turns


class GeneratorTurn(NamedTuple):
    """What the generator minimises.

    loss: a scalar, the mean over images; its gradient reaches the reconstruction. terms: name ->
    value, each a scalar: `nll`, its terms `reconstruction` and `perceptual`, `generator` (without
    weight) and `adversarial_weight` (0 before the start; `config.weight` is in it). state: the
    discriminator's, after the call.
    """

    loss: Array
    terms: dict[str, Array]
    state: Any


def generator_turn(
    images: Float[Array | np.ndarray, "b h w 3"],
    decoded: Float[Array | np.ndarray, "b h w 3"],
    features: Float[Array | np.ndarray, "b h w c"],
    kernel: Float[Array | np.ndarray, "taps taps c 3"],
    weights: LpipsWeights | None,
    discriminate: Discriminate,
    state: Any,
    step: Int[Array | np.ndarray, ""] | int,
    config: AdversarialConfig,
    dtype: DTypeLike = jnp.float32,
    kernel_gradients: tuple[Array, ...] | None = None,
) -> GeneratorTurn:
    """nll + weight x adversarial term; the codebook's terms are the caller's to add.

    The gradient of the loss is worked out here and only given on in the backward pass: the
    networks that judge are gone through once, forth and back. It is for `decoded` alone: the
    judging networks are constants.

    Args:
        images: in [-1, 1].
        decoded: their reconstructions, as the decoder's last layer gives them.
        features: what goes into that layer.
        kernel: of that layer.
        weights: of LPIPS, see `perceptual_reconstruction`.
        discriminate: the discriminator, from images and `state` to logits and the next state.
        state: the discriminator's.
        step: of the training.
        config: the terms.
        dtype: in which LPIPS computes convolutions.
        kernel_gradients: what `turn_kernel_gradients` gives for the whole batch, of which the
            images are a part; None where they are the whole batch.
    """
    nll, generator = _gradients(images, decoded, weights, discriminate, state, config, dtype)
    terms, after = dict(nll.aux), generator.aux
    weight = jnp.float32(config.weight)
    if config.adaptive:
        if kernel_gradients is None:
            kernel_gradients = last_kernel_gradients(
                jax.lax.stop_gradient(features), kernel, nll.gradient, generator.gradient
            )
        weight = weight * adaptive_weight(*kernel_gradients)
    weight = weight * started(step, config)
    loss = with_gradient(
        jnp.asarray(decoded),
        nll.value + weight * generator.value,
        nll.gradient + weight * generator.gradient,
    )
    terms |= {"nll": nll.value, "generator": generator.value, "adversarial_weight": weight}
    return GeneratorTurn(loss, terms, jax.lax.stop_gradient(after))


def turn_kernel_gradients(
    images: Float[Array | np.ndarray, "b h w 3"],
    decoded: Float[Array | np.ndarray, "b h w 3"],
    features: Float[Array | np.ndarray, "b h w c"],
    kernel: Float[Array | np.ndarray, "taps taps c 3"],
    weights: LpipsWeights | None,
    discriminate: Discriminate,
    state: Any,
    config: AdversarialConfig,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "taps taps c 3"], Float[Array, "taps taps c 3"]]:
    """What `adaptive_weight` takes: gradients of the means over images of nll and adversarial term.

    Those of a batch are means of those of its parts. See `generator_turn` for the arguments.
    """
    nll, generator = _gradients(images, decoded, weights, discriminate, state, config, dtype)
    found = last_kernel_gradients(features, kernel, nll.gradient, generator.gradient)
    return found[0], found[1]


class _Gradient(NamedTuple):
    """A scalar, its gradient for the reconstructions [b, h, w, 3], and what came with it."""

    value: Array
    gradient: Array
    aux: Any


def _gradients(
    images: Float[Array | np.ndarray, "b h w 3"],
    decoded: Float[Array | np.ndarray, "b h w 3"],
    weights: LpipsWeights | None,
    discriminate: Discriminate,
    state: Any,
    config: AdversarialConfig,
    dtype: DTypeLike,
) -> tuple[_Gradient, _Gradient]:
    """The nll (with its terms) and the adversarial term (with the discriminator's next state)."""

    def nll(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, terms = perceptual_reconstruction(images, x, weights, config, dtype)
        return jnp.mean(loss), {name: jnp.mean(term) for name, term in terms.items()}

    def adversarial(x: jax.Array) -> tuple[jax.Array, Any]:
        logits, after = discriminate(x, state)
        return jnp.mean(generator_loss(config.generator_loss, logits)), after

    fixed = jax.lax.stop_gradient(decoded)
    (nll_value, terms), nll_gradient = jax.value_and_grad(nll, has_aux=True)(fixed)
    (g_value, after), g_gradient = jax.value_and_grad(adversarial, has_aux=True)(fixed)
    return _Gradient(nll_value, nll_gradient, terms), _Gradient(g_value, g_gradient, after)


class DiscriminatorTurn(NamedTuple):
    """What the discriminator minimises.

    loss: a scalar, the mean over images, 0 before the start. terms: `discriminator` (the loss
    whether or not it counts), `logits_real` and `logits_fake`, their means. state: the
    discriminator's, after both calls.
    """

    loss: Array
    terms: dict[str, Array]
    state: Any


def discriminator_turn(
    images: Float[Array | np.ndarray, "b h w 3"],
    decoded: Float[Array | np.ndarray, "b h w 3"],
    discriminate: Discriminate,
    state: Any,
    step: Int[Array | np.ndarray, ""] | int,
    config: AdversarialConfig,
) -> DiscriminatorTurn:
    """The loss of the logits of real images and, in a second call, of their reconstructions.

    No gradient goes to the images or to the state. See `generator_turn` for the arguments.
    """
    real, state = discriminate(jax.lax.stop_gradient(images), state)
    fake, state = discriminate(jax.lax.stop_gradient(decoded), state)
    loss = jnp.mean(discriminator_loss(config.discriminator_loss, real, fake))
    terms = {"discriminator": loss, "logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
    return DiscriminatorTurn(
        started(step, config) * loss,
        jax.lax.stop_gradient(terms),
        jax.lax.stop_gradient(state),
    )


def started(step: Int[Array | np.ndarray, ""] | int, config: AdversarialConfig) -> Float[Array, ""]:
    """1 from `config.start_step` on, 0 before."""
    return jnp.where(jnp.asarray(step) >= config.start_step, 1.0, 0.0)


@jax.custom_vjp
def with_gradient(x: Array, value: Float[Array, ""], gradient: Array) -> Float[Array, ""]:
    """`value`, a scalar whose gradient for x is `gradient`: worked out before, given on when asked.

    No gradient goes to `value` or `gradient`.
    """
    return value


def _with_gradient_forward(
    x: jax.Array, value: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return value, gradient.astype(x.dtype)


def _with_gradient_backward(
    gradient: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return (
        cotangent.astype(gradient.dtype) * gradient,
        jnp.zeros_like(cotangent),
        jnp.zeros_like(gradient),
    )


with_gradient.defvjp(_with_gradient_forward, _with_gradient_backward)
