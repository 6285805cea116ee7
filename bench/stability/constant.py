"""The loss of a model that sees nothing: what a network cut off from its input can reach."""

import itertools
from collections.abc import Iterator

import numpy as np

from cogview_jax.tokenizers.layout import Example

KINDS = ("text", "image")


def constant_losses(
    batches: Iterator[Example[np.ndarray]], steps: int, vocabulary: int
) -> dict[str, float]:
    """Cross-entropy of the best fixed distribution over all ids: {"text_loss", "image_loss"}.

    It is the distribution of the targets of the first `steps` of `batches`, text and image tokens
    weighing the same, and the losses are theirs.
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
