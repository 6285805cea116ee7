"""The largest values inside a model, layer by layer: what shows a type's range running out.

They are written only where a caller asks for them,

    hidden, sown = model.apply(variables, tokens, positions, mutable=ACTIVATION_MAX)
    extremes = layer_activation_max(sown)

and cost nothing elsewhere.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

#: The collection that `sow_max` writes to.
ACTIVATION_MAX = "activation_max"


def sow_max(module: nn.Module, name: str, x: jax.Array) -> None:
    """Notes max |x| under `name`; of several notes of a name in one layer the largest stays."""
    if not module.is_mutable_collection(ACTIVATION_MAX) or module.is_initializing():
        return
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    module.sow(ACTIVATION_MAX, name, largest, reduce_fn=jnp.maximum, init_fn=lambda: jnp.float32(0))


def layer_activation_max(sown: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What the layers of a scanned stack with dense attention noted: name -> float32 [layers].

    "main": the residual branch after the layer. "scores": of attention, before the softmax, where
    a query sees. "norm_inputs": of the layer's LayerNorms.
    """
    block = sown[ACTIVATION_MAX]["blocks"]["block"]
    return {
        "main": block["main"],
        "scores": block["attention"]["scores"],
        "norm_inputs": block["norm_inputs"],
    }
