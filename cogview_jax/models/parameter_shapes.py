"""The shapes of a transformer's parameters, which say what is to be read before anything is."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cogview_jax.models.attention import causal_mask
from cogview_jax.models.transformer import ScannedBlock, Transformer
from cogview_jax.runtime.random_key import random_key


def transformer_shapes(model: Transformer) -> Any:
    """Returns the parameters of a transformer as shapes, float32, boxed with their logical axes.

    They are those of `model.init`, which would trace a layer twice for its scan, and takes twice as
    long.
    """
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def init(tokens: jax.Array) -> tuple[Any, Any]:
        def around(module: Transformer, tokens: jax.Array) -> jax.Array:
            return module.final_norm(module.embed(tokens, tokens))

        key = random_key(0)
        x, outside = model.init_with_output(key, tokens, method=around)
        layer = ScannedBlock(model.config, model.policy, model.programs.platform)
        return outside["params"], layer.init(key, x, causal_mask(1))["params"]

    def stacked(box: Any) -> Any:
        shape = (model.config.layers, *box.value.shape)
        boxed = box.replace_boxed(jax.ShapeDtypeStruct(shape, box.value.dtype))
        return boxed.add_axis(0, {nn.PARTITION_NAME: "layers"})

    outside, layer = jax.eval_shape(init, tokens)
    is_box = {"is_leaf": lambda node: isinstance(node, nn.LogicallyPartitioned)}
    return {**outside, "blocks": jax.tree.map(stacked, layer, **is_box)}
