"""The largest values inside a model, layer by layer: what shows a type's range running out.

They are written only where a caller asks for them,

    hidden, sown = model.apply(variables, tokens, positions, mutable=EXTREMES)
    extremes = layer_extremes(sown)

and cost nothing elsewhere.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

#: The collection that `observe` writes to.
EXTREMES = "extremes"


def observe(module: nn.Module, name: str, x: jax.Array) -> None:
    """Notes max |x| under `name`; of several notes of a name in one layer the largest stays."""
    if not module.is_mutable_collection(EXTREMES) or module.is_initializing():
        return
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    module.sow(EXTREMES, name, largest, reduce_fn=jnp.maximum, init_fn=lambda: jnp.float32(0))


def layer_extremes(sown: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What the layers of a scanned stack with dense attention noted: name -> float32 [layers].

    "main": the residual branch after the layer. "scores": of attention, before the softmax, where
    a query sees. "norm_inputs": of the layer's LayerNorms.
    """
    block = sown[EXTREMES]["blocks"]["block"]
    return {
        "main": block["main"],
        "scores": block["attention"]["scores"],
        "norm_inputs": block["norm_inputs"],
    }
