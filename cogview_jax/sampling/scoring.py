"""How likely a sequence is under the model: what self-reranking (CapLoss) is made of."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cogview_jax.models.transformer import Transformer


@functools.partial(jax.jit, static_argnames=("model", "count", "first", "last"))
def token_log_probs(
    params: Mapping[str, Any],
    tokens: jax.Array,
    positions: jax.Array,
    *,
    model: Transformer,
    count: int,
    first: int,
    last: int,
) -> jax.Array:
    """log p of the last `count` tokens of each row, each given what stands before it.

    Every row is judged by itself, whatever the model's LayerNorm looks at. For a caption model's
    rows, whose text stands last, CapLoss is minus their mean (CogView, section 3.2); the release
    sums them.

    Args:
        params: of the transformer, stacked by layer.
        tokens: int32 [B, T].
        positions: int32 [B, T].
        model: the transformer.
        count: how many tokens at the end are judged.
        first: the first id that counts as possible; the others are left out of the softmax.
        last: one past the last possible id.

    Returns:
        float32 [B, count].
    """
    variables = {"params": params}

    def of_row(tokens: jax.Array, positions: jax.Array) -> jax.Array:
        hidden = model.apply(variables, tokens[None, :-1], positions[None, :-1])[0, -count:]
        logits = model.apply(variables, hidden, first, last, method=model.logits)
        chosen = tokens[-count:, None] - first
        return jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, axis=-1)[:, 0]

    return jax.vmap(of_row)(tokens, positions)
