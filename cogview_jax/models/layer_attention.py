"""The attention weights of every layer of a trained model, for people who look into it.

Legend: T positions, N heads, D width.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cogview_jax.models.attention import ATTENTION_WEIGHTS, causal_mask
from cogview_jax.models.block import Block
from cogview_jax.models.transformer import Transformer, without_blocks


def layer_attention(
    model: Transformer,
    params: Mapping[str, Any],
    tokens: Int[Array | np.ndarray, " T"],
    positions: Int[Array | np.ndarray, " T"],
) -> Iterator[Float[Array, "N T T"]]:
    """Yields the attention weights of one sequence, layer by layer from the first on.

    They are the weights by which the layer averages its values, before dropout: nothing computes
    them a second time. Only those of one layer are in memory.

    Args:
        model: the transformer of `params`, with dense attention. Attention runs in XLA here, in
            the types of the model, whichever program its implementation names.
        params: the parameters from `unstack_layers` or `unstack_arrays`.
        tokens: the ids.
        positions: the positions of the tokens.

    Yields:
        The weight of each key (last axis) for each query. The weights of a query add up to 1.
    """
    assert not model.config.sparse, "sparse attention has no weights for every key"
    mask = causal_mask(len(tokens))
    x: Any = model.apply(
        {"params": without_blocks(params)}, tokens[None], positions[None], method=model.embed
    )
    for layer in params["blocks"]:
        x, weights = _apply_block(layer, x, mask, model=model)
        yield weights[0]


@functools.partial(jax.jit, static_argnames="model")
def _apply_block(
    params: Mapping[str, Any],
    x: Float[Array, "1 T D"],
    mask: Bool[Array, "T T"],
    *,
    model: Transformer,
) -> tuple[Float[Array, "1 T D"], Float[Array, "1 N T T"]]:
    """Applies one layer; returns the main branch after it, and its attention weights."""
    block = Block(model.config, model.policy, model.programs.platform)
    (x, _), recorded = block.apply({"params": params}, x, mask, mutable=ATTENTION_WEIGHTS)
    return x, recorded[ATTENTION_WEIGHTS]["attention"]["weights"][0]
