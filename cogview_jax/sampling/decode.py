"""Decoding: a prompt's cache is filled once, then one jitted scan draws a fixed count of tokens.

Legend: B batch, P prompt length with padding on the left, C tokens to draw.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cogview_jax.models.pivots import PIVOT_STREAM, draw_slots
from cogview_jax.models.transformer import Transformer, cached_forward, empty_cache
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.filters import SamplingConfig, draw


def seed_key(seed: int) -> jax.Array:
    """The typed random key of a seed; InputError for one of more than 32 bits.

    jax would drop the rest, and draw as another seed does.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}: expected 0 to {2**32 - 1}")
    return jax.random.key(seed)


def sample_keys(seed: int, prompts: Sequence[str], indices: Sequence[int]) -> jax.Array:
    """One typed random key a row, folded from the seed, the prompt and the index of its picture.

    Nothing else enters, so a picture is the same whatever is drawn beside it. Raises InputError
    for a seed of more than 32 bits.
    """
    root = seed_key(seed)
    words = [hashlib.sha256(prompt.encode()).digest()[:4] for prompt in prompts]
    prompt_ids = jnp.array([int.from_bytes(word) for word in words], jnp.uint32)
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, 0))
    keys = jax.vmap(lambda word: jax.random.fold_in(root, word))(prompt_ids)
    return fold(keys, jnp.array(indices, jnp.uint32))


@functools.partial(jax.jit, static_argnames=("model", "count", "first", "last", "config"))
def generate(
    params: Mapping[str, Any],
    tokens: jax.Array,
    valid: jax.Array,
    keys: jax.Array,
    positions: jax.Array | None = None,
    given: jax.Array | None = None,
    *,
    model: Transformer,
    count: int,
    first: int,
    last: int,
    config: SamplingConfig,
) -> jax.Array:
    """Continues each prompt by `count` tokens with ids in [first, last): int32 [B, C].

    Args:
        params: from `unstack_layers`.
        tokens: int32 [B, P], prompts that end together (`tokenizers.layout.left_padded`).
        valid: bool [B, P], False on the padding, which has no position and is never seen.
        keys: one typed key a row; the draw of token i uses the key folded with i. A row's
            pivots of sparse attention follow from its key and prompt.
        positions: int32 [B, P], of the prompts' tokens, where they are not simply counted; what is
            drawn counts on from the last.
        given: int32 [B, C], tokens that are known already; -1 is drawn.
        model: the transformer of `params`.
        count: how many tokens each row gets; there is no early end.
        first: the first id that may be drawn; only this part of the head is computed.
        last: one past the last id that may be drawn.
        config: temperature and filters.
    """
    batch, prompt = tokens.shape
    if positions is None:
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    visible = jnp.concatenate([valid, jnp.ones((batch, count), bool)], axis=1)
    pivots = None
    if model.config.sparse:
        # What will be drawn is known by its kind.
        whole = jnp.concatenate([tokens, jnp.full((batch, count), first, tokens.dtype)], axis=1)
        streams = jax.vmap(jax.random.fold_in, (0, None))(keys, PIVOT_STREAM)
        pivots = draw_slots(model.config, model.ids, whole, visible, streams)
    cache = empty_cache(model, batch, prompt + count, pivots)
    hidden, cache = cached_forward(model, params, tokens, positions, visible, cache, 0)

    def pick(hidden: jax.Array, i: jax.Array | int) -> jax.Array:
        variables = {"params": params}
        logits = model.apply(variables, hidden[:, -1], first, last, method=model.logits)
        drawn = first + draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, i), config)
        return drawn if given is None else jnp.where(given[:, i] < 0, drawn, given[:, i])

    def advance(carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        token, cache = carry
        position = (positions[:, -1] + i)[:, None]
        hidden, cache = cached_forward(
            model, params, token[:, None], position, visible, cache, prompt + i - 1
        )
        following = pick(hidden, i)
        return (following, cache), following

    start = pick(hidden, 0)
    _, rest = jax.lax.scan(advance, (start, cache), jnp.arange(1, count))
    return jnp.concatenate([start[:, None], rest.T], axis=1)
