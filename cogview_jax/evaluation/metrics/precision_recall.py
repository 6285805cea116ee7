"""Improved precision and recall of Kynkäänniemi et al. 2019 (arXiv 1904.06991).

The manifold of a set is the union of the balls around its features that reach to their k-th nearest
neighbour in the same set. Precision is the share of generated images in the manifold of the real
ones, recall the share of real images in that of the generated ones.

Legend: n images, d numbers per image.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Bool, Float, Float64

from cogview_jax.evaluation.metrics.features import check_features
from cogview_jax.runtime.errors import InputError

#: Features whose distances to all others are in memory at the same time.
ROWS = 512


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall; both depend on the number of images, so compare equal numbers.

    Attributes:
        precision: share of generated images that look real.
        recall: share of real images that could be generated.
        precision_standard_error: of a share of that many images, the other set being fixed.
        recall_standard_error: likewise.
        neighbours: k.
        n: number of real images and of generated ones.
    """

    precision: float
    recall: float
    precision_standard_error: float
    recall_standard_error: float
    neighbours: int
    n: tuple[int, int]


def precision_recall(
    real: Float[Array | np.ndarray, "n1 d"],
    generated: Float[Array | np.ndarray, "n2 d"],
    *,
    neighbours: int = 3,
) -> PrecisionRecall:
    """Precision and recall of generated images; time grows with the product of the numbers.

    Args:
        real: features of real images.
        generated: features of generated images.
        neighbours: k; a feature is not its own neighbour.

    Raises:
        InputError: a set has no more images than `neighbours`, or the dimensions differ.
    """
    if neighbours < 1:
        raise InputError(f"precision and recall with {neighbours} neighbours: expected at least 1")
    real = check_features(real, "features of real images", least=neighbours + 1)
    generated = check_features(generated, "features of generated images", least=neighbours + 1)
    if real.shape[1] != generated.shape[1]:
        raise InputError(
            "precision and recall of features of different numbers of dimensions:"
            f" {real.shape[1]} and {generated.shape[1]}"
        )
    shares = []
    for manifold, others in ((real, generated), (generated, real)):
        share = float(np.mean(_inside(others, manifold, _squared_radii(manifold, neighbours))))
        shares.append((share, float(np.sqrt(share * (1 - share) / len(others)))))
    (precision, precision_error), (recall, recall_error) = shares
    return PrecisionRecall(
        precision,
        recall,
        precision_error,
        recall_error,
        neighbours,
        (len(real), len(generated)),
    )


def _squared_radii(
    features: Float[np.ndarray, "n d"], neighbours: int
) -> Float64[np.ndarray, " n"]:
    """The squared distance of each feature to its k-th nearest neighbour."""
    radii = np.empty(len(features))
    for start in range(0, len(features), ROWS):
        rows = np.arange(start, min(start + ROWS, len(features)))
        distances = _squared_distances(features[rows], features)
        distances[rows - start, rows] = np.inf
        radii[rows] = np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1]
    return radii


def _inside(
    points: Float[np.ndarray, "m d"],
    centres: Float[np.ndarray, "n d"],
    squared_radii: Float64[np.ndarray, " n"],
) -> Bool[np.ndarray, " m"]:
    """Whether each point is in at least one ball."""
    return np.concatenate(
        [
            (_squared_distances(points[i : i + ROWS], centres) <= squared_radii).any(axis=1)
            for i in range(0, len(points), ROWS)
        ]
    )


def _squared_distances(
    x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"]
) -> Float64[np.ndarray, "m n"]:
    """Squared Euclidean distances in float64; `y` is converted part by part."""
    x = np.asarray(x, np.float64)
    result = np.empty((len(x), len(y)))
    for start in range(0, len(y), ROWS):
        part = np.asarray(y[start : start + ROWS], np.float64)
        result[:, start : start + ROWS] = np.sum(part**2, axis=1) - 2 * (x @ part.T)
    return result + np.sum(x**2, axis=1)[:, None]
