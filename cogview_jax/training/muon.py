"""Muon: momentum whose matrices are made orthogonal before they become an update.

Adam scales every entry of a gradient by itself. Muon replaces a matrix of momentum, with the
singular value decomposition U S V^T, by about U V^T: all directions that the gradient has move
equally far (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). The update is scaled as
in "Muon is Scalable for LLM Training" (arXiv 2502.16982, section 2.2), so that its entries are as
large as Adam's usually are, and one learning rate and weight decay suit both.

Embeddings, biases and LayerNorms are no matrices in this sense and stay with Adam.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

#: a, b, c of the polynomial a x + b x^3 + c x^5. Applied five times, it brings a singular value
#: between about .002 and 1 to within .3 of 1, and to no exact value: an approximate one is as good.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)

ITERATIONS = 5

#: The parameters below this name are stacked by layer.
STACKED = "blocks"

#: The root mean square of an update: Adam's is usually .2 to .4 (arXiv 2502.16982, section 2.2).
UPDATE_SIZE = 0.2


class MuonState(NamedTuple):
    """The moving average of the gradients, a tree like the parameters."""

    momentum: Any


def scale_by_muon(beta: float) -> optax.GradientTransformation:
    """Replaces gradients of kernels by orthogonal matrices of the size of Adam's updates.

    Kernels of the transformer's blocks are stacked, [L, D, *F, K]: one matrix [D, K] for each of L
    layers and each of *F, such as queries, keys and values. Any other kernel [*D, K], as of a
    convolution, is one matrix whose rows are all inputs of an output.

    Args:
        beta: the decay of the momentum, which is Nesterov's.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(gradients: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params

        def average(momentum: jax.Array, gradient: jax.Array) -> jax.Array:
            return beta * momentum + (1 - beta) * gradient

        momentum = jax.tree.map(average, state.momentum, gradients)
        ahead = jax.tree.map(average, momentum, gradients)
        return jax.tree.map_with_path(_scaled, ahead), MuonState(momentum)

    return optax.GradientTransformation(init, update)


def _scaled(path: tuple[Any, ...], kernel: jax.Array) -> jax.Array:
    stacked = path and path[0] == jax.tree_util.DictKey(STACKED)
    matrices = jnp.moveaxis(kernel, 1, -2) if stacked else kernel.reshape(-1, kernel.shape[-1])
    size = UPDATE_SIZE * max(matrices.shape[-2:]) ** 0.5
    updates = size * orthogonalized(matrices)
    return jnp.moveaxis(updates, -2, 1) if stacked else updates.reshape(kernel.shape)


def orthogonalized(matrices: Float[Array, "*batch D K"]) -> Float[Array, "*batch D K"]:
    """The matrices with singular values near 1, by `ITERATIONS` Newton-Schulz iterations.

    A matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    # The products of the iteration are as large as the shorter side.
    transposed = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if transposed else matrices
    # Squares of small numbers would be 0, so the largest entry is made 1 before they are taken.
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    x = x / jnp.where(largest == 0, 1, largest)
    # No singular value exceeds the Frobenius norm, which is now 1 or more, or 0.
    x = x / jnp.maximum(1, jnp.linalg.norm(x, axis=(-2, -1), keepdims=True))
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if transposed else x
