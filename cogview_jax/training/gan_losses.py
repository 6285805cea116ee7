"""What generator and discriminator minimise, from the logits of the discriminator.

Legend: b images, rows columns of the discriminator's patches.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _per_image(values: Float[Array | np.ndarray, "b rows columns"]) -> Float[Array, " b"]:
    return jnp.mean(values.astype(jnp.float32), axis=(1, 2))


def _minus_logit(fake: jax.Array) -> jax.Array:
    return -fake


def _minus_log_real(fake: jax.Array) -> jax.Array:
    """-log sigmoid(logit): what the discriminator would have to believe."""
    return jax.nn.softplus(-fake)


def _hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    return (jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)) / 2


def _cross_entropy(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Binary cross entropy of the logits: -log sigmoid(real) and -log(1 - sigmoid(fake))."""
    return (jax.nn.softplus(-real) + jax.nn.softplus(fake)) / 2


GENERATOR_LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "hinge": _minus_logit,
    "non_saturating": _minus_log_real,
}
DISCRIMINATOR_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "hinge": _hinge,
    "vanilla": _cross_entropy,
    "non_saturating": _cross_entropy,
}


def generator_loss(
    kind: str, fake: Float[Array | np.ndarray, "b rows columns"]
) -> Float[Array, " b"]:
    """What the generator minimises, of each image, from the logits of generated images.

    "hinge" is -logit; "non_saturating" is softplus(-logit) (Goodfellow et al. 2014, arXiv
    1406.2661). LlamaGen's non-saturating loss swaps logits and targets; this one does not.
    """
    return _per_image(GENERATOR_LOSSES[kind](jnp.asarray(fake)))


def discriminator_loss(
    kind: str,
    real: Float[Array | np.ndarray, "b rows columns"],
    fake: Float[Array | np.ndarray, "b rows columns"],
) -> Float[Array, " b"]:
    """What the discriminator minimises, of each pair, from the logits of real and generated images.

    "hinge" is (relu(1 - real) + relu(1 + fake)) / 2; "vanilla" and "non_saturating", which differ
    in the generator's loss alone, are (softplus(-real) + softplus(fake)) / 2.
    """
    real, fake = jnp.asarray(real), jnp.asarray(fake)
    return _per_image(DISCRIMINATOR_LOSSES[kind](real, fake))
