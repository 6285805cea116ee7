"""How likely a sequence is under the model: what self-reranking (CapLoss) is made of."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.models.transformer import Transformer, logits_of, whole_forward, without_blocks


def token_log_probs(
    params: Mapping[str, Any],
    tokens: np.ndarray,
    positions: np.ndarray,
    *,
    model: Transformer,
    count: int,
    first: int,
    last: int,
    valid: np.ndarray | None = None,
) -> jax.Array:
    """log p of the last `count` tokens of each row, each given what stands before it.

    Every row is judged by itself, whatever the model's LayerNorm looks at. For a caption model's
    rows, whose text stands last, CapLoss is minus their mean (CogView, section 3.2); the release
    sums them.

    Args:
        params: of the transformer, from `unstack_layers` or `unstack_arrays`.
        tokens: int32 [B, T].
        positions: int32 [B, T].
        model: the transformer.
        count: how many tokens at the end are judged.
        first: the first id that counts as possible; the others are left out of the softmax.
        last: one past the last possible id.
        valid: bool [B, T], False for padding at the end of a row, which changes nothing before it;
            None where there is none. Not for sparse attention, whose pivots follow the length.

    Returns:
        float32 [B, count]; for padding it means nothing.
    """
    before = tokens[:, :-1]
    counted = jnp.ones(before.shape, bool) if valid is None else jnp.asarray(valid[:, :-1])
    at = jnp.asarray(positions[:, :-1])
    hidden = whole_forward(model, params, jnp.asarray(before), at, counted)
    outside, judged = without_blocks(params), tokens[:, -count:] - first
    return _log_probs(outside, hidden, judged, model=model, first=first, last=last)


@functools.partial(jax.jit, static_argnames=("model", "first", "last"))
def _log_probs(
    params: Any, hidden: jax.Array, chosen: jax.Array, *, model: Transformer, first: int, last: int
) -> jax.Array:
    """log p of the ids `first` + chosen [B, C] after the last C of hidden [B, T, D]."""
    hidden = hidden[:, -chosen.shape[1] :]
    log_probs = jax.nn.log_softmax(logits_of(params, hidden, model=model, first=first, last=last))
    return jnp.take_along_axis(log_probs, chosen[..., None], axis=-1)[..., 0]
