"""CLIPScore: how near the CLIP embedding of an image is to that of its caption.

Hessel et al. 2021 (arXiv 2104.08718): 2.5 max(cos, 0) for each pair. Others report 100 cos. Both
depend on the CLIP model and on the prompt in front of the caption ("A photo depicts" in that
paper), which the caller names.

Legend: n pairs, d numbers per embedding.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Float64

from cogview_jax.evaluation.metrics.features import check_features
from cogview_jax.runtime.errors import InputError

#: The factor of the paper.
WEIGHT = 2.5


@dataclass(frozen=True)
class ClipScore:
    """A CLIPScore.

    Attributes:
        mean: of 2.5 max(cos, 0) over the pairs.
        standard_error: of `mean`; None for a single pair.
        cosine_percent: the mean of 100 cos, the form without clipping.
        cosine_percent_standard_error: of that; None for a single pair.
        n: number of pairs.
    """

    mean: float
    standard_error: float | None
    cosine_percent: float
    cosine_percent_standard_error: float | None
    n: int


def clip_score(
    images: Float[Array | np.ndarray, "n d"], captions: Float[Array | np.ndarray, "n d"]
) -> ClipScore:
    """The CLIPScore of pairs of an image and its caption.

    Args:
        images: CLIP's embeddings of images, of any length.
        captions: CLIP's embeddings of their captions, row by row.

    Raises:
        InputError: the numbers of rows or columns differ, or an embedding is zero or not finite.
    """
    cosine = cosines(images, captions)
    mean, error = _mean(WEIGHT * np.maximum(cosine, 0))
    percent, percent_error = _mean(100 * cosine)
    return ClipScore(mean, error, percent, percent_error, len(cosine))


def cosines(
    images: Float[Array | np.ndarray, "n d"], captions: Float[Array | np.ndarray, "n d"]
) -> Float64[np.ndarray, " n"]:
    """The cosine of each pair, with the same arguments and errors as `clip_score`."""
    x, y = unit_rows(images, "embeddings of images"), unit_rows(captions, "embeddings of captions")
    if x.shape != y.shape:
        raise InputError(
            f"embeddings of images {x.shape} and of captions {y.shape}: expected pairs"
        )
    return np.sum(x * y, axis=1)


def unit_rows(
    embeddings: Float[Array | np.ndarray, "n d"], what: str
) -> Float64[np.ndarray, "n d"]:
    """The embeddings divided by their lengths, in float64.

    Raises:
        InputError: an embedding is zero or not finite; `what` they are is named.
    """
    rows = np.asarray(check_features(embeddings, what), np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not lengths.all():
        raise InputError(f"{what}: row {int(np.argmin(lengths))} is zero and has no direction")
    return rows / lengths


def _mean(values: Float64[np.ndarray, " n"]) -> tuple[float, float | None]:
    n = len(values)
    error = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
    return float(np.mean(values)), error
