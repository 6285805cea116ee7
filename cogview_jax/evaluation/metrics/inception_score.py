"""IS: the inception score of Salimans et al. 2016 (arXiv 1606.03498), exp(E KL(p(y|x) || p(y))).

Legend: n images, c classes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float
from scipy.special import entr, softmax

from cogview_jax.evaluation.metrics.features import Rows, check_features
from cogview_jax.runtime.errors import InputError

#: Images whose probabilities are computed together, so that memory does not grow with their number.
_TOGETHER = 512


@dataclass(frozen=True)
class InceptionScore:
    """An inception score.

    Attributes:
        mean: over the splits. It is biased downwards where a split has few images: with fewer
            images than classes it cannot exceed their number.
        std: over the splits, with the number of splits in the denominator.
        n: number of images that count.
        splits: parts into which the images were divided.
    """

    mean: float
    std: float
    n: int
    splits: int


def inception_score(
    logits: Float[Array | np.ndarray, "n c"] | Rows,
    splits: int = 10,
    *,
    seed: int = 2020,
    shuffle: bool = True,
    equal_splits: bool = False,
) -> InceptionScore:
    """The inception score of images, from the logits of a classifier; natural logarithms, float64.

    The defaults are those of torch-fidelity. Split i has the rows from floor(i n / splits) to
    floor((i + 1) n / splits) of a permutation. Code that descends from DM-GAN, such as CogView's
    release, has `shuffle=False, equal_splits=True`.

    Args:
        logits: before the softmax. Whether the bias of the last layer is in them moves the score.
        splits: parts of the images.
        seed: of the permutation, `numpy.random.RandomState(seed).permutation`.
        shuffle: whether images are permuted before they are divided; generators that write their
            classes in order need it.
        equal_splits: every split has floor(n / splits) images, and the rest is left out.

    Raises:
        InputError: there are fewer images than splits, or a logit is not finite.
    """
    if splits < 1:
        raise InputError(f"inception score of {splits} splits: expected at least 1")
    logits = check_features(logits, "logits of the inception score", least=splits)
    n = len(logits)
    order = np.random.RandomState(seed).permutation(n) if shuffle else np.arange(n)
    if equal_splits:
        n = n // splits * splits
    scores = []
    for i in range(splits):
        rows = order[i * n // splits : (i + 1) * n // splits]
        total, entropies = np.zeros(logits.shape[1]), 0.0
        for start in range(0, len(rows), _TOGETHER):
            some = np.asarray(logits[rows[start : start + _TOGETHER]], np.float64)
            p = softmax(some, axis=1)
            total += p.sum(axis=0)
            entropies += entr(p).sum()
        # E KL(p(y|x) || p(y)) is the entropy of p(y) less the mean entropy of p(y|x).
        scores.append(np.exp(entr(total / len(rows)).sum() - entropies / len(rows)))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), n, splits)
