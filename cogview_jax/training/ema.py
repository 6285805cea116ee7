"""An exponential moving average of the weights (EMA), which often is the better model.

Polyak and Juditsky 1992 average the iterates of stochastic gradient descent; with an exponential
window and a decay that rises from small values it is TensorFlow's `ExponentialMovingAverage` (its
`num_updates`), and the `LitEma` of CompVis' latent diffusion.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Tree = TypeVar("Tree")


def initial_average(params: Tree) -> Tree:
    """The average before the first update: a float32 copy of the parameters."""
    return jax.tree.map(lambda leaf: jnp.copy(jnp.asarray(leaf, jnp.float32)), params)


def decay_at(update: Int[Array, ""] | int, decay: float) -> Float[Array, ""]:
    """The decay of an update, counted from 1: min(decay, (1 + update) / (10 + update)).

    The first updates would otherwise hardly move the average from the random weights it starts at.
    """
    return jnp.minimum(jnp.float32(decay), (1 + update) / (10 + update))


def update_average(average: Tree, params: Any, update: Int[Array, ""] | int, decay: float) -> Tree:
    """The average after an update: d average + (1 - d) params, where d = decay_at(update, decay).

    It is computed as average + (1 - d) (params - average), so that the average of parameters that
    never change is those parameters, bit for bit.

    Args:
        average: float32.
        params: after the update, a tree like `average`.
        update: the number of the update, counted from 1.
        decay: the largest decay.
    """
    share = 1 - decay_at(update, decay)
    return jax.tree.map(
        lambda mean, leaf: mean + share * (leaf.astype(jnp.float32) - mean), average, params
    )
