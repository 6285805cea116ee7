"""Computes the least loss of a model that does not see its input."""

import itertools
from collections.abc import Iterator

import numpy as np

from cogview_jax.tokenizers.layout import Example

KINDS = ("text", "image")


def constant_losses(batches: Iterator[Example], steps: int, vocabulary: int) -> dict[str, float]:
    """Returns {"text_loss", "image_loss"} of the best fixed distribution over all ids.

    It is the distribution of the targets in the first `steps` of `batches`, where text and image
    tokens have the same weight. The losses are cross-entropies over these batches.
    """
    counts = {kind: np.zeros(vocabulary) for kind in KINDS}
    for batch in itertools.islice(batches, steps):
        for kind, count in counts.items():
            weights = getattr(batch, f"{kind}_weights").ravel()
            count += np.bincount(batch.targets.ravel(), weights, vocabulary)
    total = sum(counts.values())
    entropies = -np.log(np.where(total > 0, total, 1) / total.sum())
    return {
        f"{kind}_loss": float(count @ entropies / count.sum()) for kind, count in counts.items()
    }
