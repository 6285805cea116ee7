"""Which tokens are pivots of sparse attention: all text, and random image tokens.

Legend: B batch, T positions, S slots of a cache, P pivots, L layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.sparse_attention import ThreeRegions, pivot_bias
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.random_key import random_key
from cogview_jax.tokenizers.vocabulary import Vocabulary

#: Names the random stream of pivots, apart from those that are numbered by rows or tokens.
PIVOT_STREAM = 0x7069766F


def draw_pivots(
    keys: Key[Array, " B"],
    text: Bool[Array | np.ndarray, "B T"],
    image: Bool[Array | np.ndarray, "B T"],
    count: int,
    layers: int,
) -> Int[Array, "L B P"]:
    """Pivots for every layer: all text, then image tokens by chance.

    Args:
        keys: one typed key a row. A row's pivots follow from its key and tokens alone.
        text: bool [B, T], where the row has text or commands.
        image: bool [B, T], where it has image codes; where it has neither is padding.
        count: P. Where there is more text, its first P tokens.
        layers: L.

    Returns:
        int32 [L, B, at most P], ascending; T where a row has fewer than P tokens.
    """
    length = text.shape[1]

    def lots(key: jax.Array) -> jax.Array:
        # Place by place, so that a place's lot does not depend on how many there are.
        of_places = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(length))
        return jax.vmap(lambda key: jax.random.uniform(key, (layers,)), out_axes=1)(of_places)

    drawn = jnp.where(text, 2, jnp.where(image, jax.vmap(lots, out_axes=1)(keys), -1))
    best, places = jax.lax.top_k(drawn, min(count, length))
    return jnp.sort(jnp.where(best < 0, length, places))


def draw_regions(
    config: TransformerConfig,
    vocabulary: Vocabulary | None,
    tokens: Int[Array | np.ndarray, "B T"],
    keys: Key[Array, " B"] | None = None,
) -> ThreeRegions:
    """What the queries of rows padded on the right see, in all layers.

    Args:
        config: of the transformer.
        vocabulary: see `text_and_image`.
        tokens: int32 [B, T], rows padded with [PAD].
        keys: one typed key a row, from which its pivots are drawn. Without any they depend on where
            the row's text stands alone: the same row gives the same result.
    """
    if keys is None:
        keys = jnp.broadcast_to(random_key(0), tokens.shape[:1])
    pivots = draw_pivots(keys, *text_and_image(vocabulary, tokens), config.pivots, config.layers)
    biased = config.conventions.pivot_bias
    bias = pivot_bias(tokens.shape[1], config.pivots) if biased else 0.0
    return ThreeRegions(pivots, config.window, config.window_blocks, bias)


def draw_slots(
    config: TransformerConfig,
    vocabulary: Vocabulary | None,
    tokens: Int[Array | np.ndarray, "B S"],
    valid: Bool[Array | np.ndarray, "B S"],
    keys: Key[Array, " B"],
) -> Int[Array, "L B P"]:
    """The pivots that `draw_regions` draws, for rows that a cache will hold, padded on the left.

    Args:
        config: of the transformer.
        vocabulary: see `text_and_image`.
        tokens: int32 [B, S], for every slot of the cache one of the kind that it will hold.
        valid: bool [B, S], False on the padding.
        keys: one typed key a row.

    Returns:
        Slots for `empty_cache`, int32 [L, B, P].
    """
    starts = jnp.argmax(valid, axis=1)
    text, image = (
        jax.vmap(jnp.roll)(kind & valid, -starts) for kind in text_and_image(vocabulary, tokens)
    )
    return draw_pivots(keys, text, image, config.pivots, config.layers) + starts[:, None]


def text_and_image(
    vocabulary: Vocabulary | None, tokens: Int[Array | np.ndarray, "B T"]
) -> tuple[Bool[Array | np.ndarray, "B T"], Bool[Array | np.ndarray, "B T"]]:
    """Where the tokens are text or commands, and where image codes: bool; padding is neither.

    vocabulary: what the ids mean. Raises InputError where a transformer was not told.
    """
    if vocabulary is None:
        raise InputError(
            "sparse attention has to tell text from image: give the Transformer its vocabulary"
        )
    image = tokens < vocabulary.codes
    return ~image & (tokens != vocabulary.command("PAD")), image
