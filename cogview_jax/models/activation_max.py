"""The largest activations of each layer, which show when a numeric type is about to overflow.

A model records them only when the caller makes their collection mutable, and otherwise pays
nothing:

    hidden, recorded = model.apply(variables, tokens, positions, mutable=ACTIVATION_MAX)
    maxima = layer_activation_max(recorded)
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

#: The name of the collection that `sow_max` writes to.
ACTIVATION_MAX = "activation_max"


def sow_max(module: nn.Module, name: str, x: Shaped[Array, "..."]) -> None:
    """Records max |x| under `name`.

    A layer that records several values under one name keeps the largest.
    """
    if not module.is_mutable_collection(ACTIVATION_MAX) or module.is_initializing():
        return
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    module.sow(ACTIVATION_MAX, name, largest, reduce_fn=jnp.maximum, init_fn=lambda: jnp.float32(0))


def layer_activation_max(recorded: Mapping[str, Any]) -> dict[str, Float[Array, " layers"]]:
    """Reads what the layers of a scanned stack with dense attention recorded.

    Args:
        recorded: the variables that `model.apply` returned beside its result.

    Returns:
        Float32 values, one a layer, under three names. "main" is the main branch after the layer,
        "scores" are the attention scores that a query may see, before the softmax, and
        "norm_inputs" are the inputs of the layer's LayerNorms.
    """
    block = recorded[ACTIVATION_MAX]["blocks"]["block"]
    return {
        "main": block["main"],
        "scores": block["attention"]["scores"],
        "norm_inputs": block["norm_inputs"],
    }
