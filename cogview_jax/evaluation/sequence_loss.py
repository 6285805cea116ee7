"""The loss of a transformer on captioned images, as training computes it, without training."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.mesh import to_host
from cogview_jax.sampling.batching import batch_rows, batches
from cogview_jax.sampling.scoring import token_log_probs


def sequence_losses(
    model: CogView,
    images: UInt8[np.ndarray, "b h w 3"],
    texts: Sequence[str],
    batch_size: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[Float[np.ndarray, "b 2"], Float[np.ndarray, "b 2"]]:
    """Cross-entropies of the tokens of captioned images, of a bundle of text_to_image.

    A text that is too long for its region is cut, as in training.

    Args:
        model: with a transformer, a text tokenizer and an image tokenizer.
        images: of the image tokenizer's size.
        texts: one for each.
        batch_size: rows at a time; None for what free memory has room for.
        progress: is told how many rows were finished.

    Returns:
        Sums of the cross-entropies of each row's text tokens and image codes, [b, 2] in float64,
        and how many of either there are, [b, 2].
    """
    layout, parts = model.layout, model.parts
    codes = model.encode(images).reshape(len(images), -1)
    limit = layout.region("text").length
    pieces = [parts.tokenizer.encode(text)[:limit] for text in texts]
    rows = [
        layout.tokens({"text": piece, "image": code})
        for piece, code in zip(pieces, codes, strict=True)
    ]
    sums, counts = np.zeros((len(rows), 2)), np.zeros((len(rows), 2))
    size = batch_rows(parts.engine.model, batch_size, layout.length, len(rows))
    # Rows of one length at a time: none is padded.
    for length in sorted({len(row) for row in rows}):
        alike = np.array([i for i, row in enumerate(rows) if len(row) == length])
        for index, own in batches(len(alike), size):
            chosen = alike[index]
            tokens = np.stack([rows[i] for i in chosen])
            log_probs = token_log_probs(
                parts.engine.params,
                tokens,
                np.stack([layout.positions_of(row) for row in tokens]),
                model=parts.engine.model,
                count=length - 1,
                first=0,
                last=layout.vocabulary.size,
            )
            entropies = -to_host(log_probs)[:own].astype(np.float64)
            is_code = tokens[:own, 1:] < layout.vocabulary.codes
            for kind, mask in enumerate((~is_code, is_code)):
                sums[chosen[:own], kind] = np.sum(entropies * mask, axis=1)
                counts[chosen[:own], kind] = np.sum(mask, axis=1)
            progress(own)
    return sums, counts
