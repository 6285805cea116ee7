"""The choice of the pivots of sparse attention: all text, and random image tokens.

Legend: B batch, T positions, S slots of a cache, P pivots, L layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.sparse_attention import ThreeRegions, pivot_bias
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.random_key import random_key
from cogview_jax.tokenizers.vocabulary import Vocabulary

#: The number of the random stream of pivots. It is no number of a row or token, whose streams are
#: folded from the same keys.
PIVOT_STREAM = 0x7069766F


def draw_pivots(
    keys: Key[Array, " B"],
    text: Bool[Array | np.ndarray, "B T"],
    image: Bool[Array | np.ndarray, "B T"],
    count: int,
    layers: int,
) -> Int[Array, "L B P"]:
    """Draws the pivots of every layer: all text tokens first, then random image tokens.

    Args:
        keys: one typed key a row. The pivots of a row depend on its key and tokens alone.
        text: where the row has text or commands.
        image: where it has image codes. A position that is in neither mask is padding.
        count: the largest number of pivots. If there is more text, only its first `count` tokens
            are pivots.
        layers: L.

    Returns:
        Positions in ascending order, int32, where P is `count`, or T if that is less. A row with
        fewer than P tokens has T in the places that remain.
    """
    length = text.shape[1]

    def priorities(key: Key[Array, ""]) -> Float[Array, "layers T"]:
        # Each position has its own key, so its priority does not depend on the length of the row.
        position_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(length))
        return jax.vmap(lambda key: jax.random.uniform(key, (layers,)), out_axes=1)(position_keys)

    # The priorities of image tokens are below 1, those of text are 2, and those of padding are -1.
    priority = jnp.where(text, 2, jnp.where(image, jax.vmap(priorities, out_axes=1)(keys), -1))
    highest, positions = jax.lax.top_k(priority, min(count, length))
    return jnp.sort(jnp.where(highest < 0, length, positions))


def draw_regions(
    config: TransformerConfig,
    vocabulary: Vocabulary | None,
    tokens: Int[Array | np.ndarray, "B T"],
    keys: Key[Array, " B"] | None = None,
) -> ThreeRegions:
    """Draws the pivots of whole rows and returns the attention pattern of all layers.

    Args:
        config: the sizes of the transformer.
        vocabulary: see `text_and_image`.
        tokens: rows that are padded on the right with [PAD].
        keys: one typed key a row, from which its pivots are drawn. Without keys, the pivots of a
            row depend on its text and image positions alone, so the same row gives the same result.
    """
    if keys is None:
        keys = jnp.broadcast_to(random_key(0), tokens.shape[:1])
    pivots = draw_pivots(keys, *text_and_image(vocabulary, tokens), config.pivots, config.layers)
    biased = config.conventions.pivot_bias
    bias = pivot_bias(tokens.shape[1], config.pivots) if biased else 0.0
    return ThreeRegions(pivots, config.window, config.window_blocks, bias)


def draw_pivot_slots(
    config: TransformerConfig,
    vocabulary: Vocabulary | None,
    tokens: Int[Array | np.ndarray, "B S"],
    valid: Bool[Array | np.ndarray, "B S"],
    keys: Key[Array, " B"],
) -> Int[Array, "L B P"]:
    """Draws the pivots that `draw_regions` draws, as slots of a cache whose rows are padded left.

    Args:
        config: the sizes of the transformer.
        vocabulary: see `text_and_image`.
        tokens: for every slot of the cache, any token of the kind (text or image) that it will
            hold.
        valid: which slots are not padding.
        keys: one typed key a row.

    Returns:
        Slots for `transformer.empty_cache`, int32.
    """
    starts = jnp.argmax(valid, axis=1)
    text, image = (
        jax.vmap(jnp.roll)(kind & valid, -starts) for kind in text_and_image(vocabulary, tokens)
    )
    return draw_pivots(keys, text, image, config.pivots, config.layers) + starts[:, None]


def text_and_image(
    vocabulary: Vocabulary | None, tokens: Int[Array | np.ndarray, "B T"]
) -> tuple[Bool[Array | np.ndarray, "B T"], Bool[Array | np.ndarray, "B T"]]:
    """Returns two masks: where the tokens are text or commands, and where they are image codes.

    Padding is in neither mask.

    Args:
        vocabulary: the meaning of the ids.
        tokens: the ids.

    Raises:
        InputError: the transformer was built without a vocabulary.
    """
    if vocabulary is None:
        raise InputError(
            "sparse attention has to tell text from image: give the Transformer its vocabulary"
        )
    image = tokens < vocabulary.codes
    return ~image & (tokens != vocabulary.command("PAD")), image
