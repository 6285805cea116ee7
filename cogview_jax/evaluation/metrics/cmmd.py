"""CMMD: the squared maximum mean discrepancy of CLIP embeddings under a Gaussian kernel.

Jayasumana et al. 2024 (arXiv 2401.09603): embeddings have length 1, the kernel is exp(-|x - y|^2 /
2 sigma^2) with sigma = 10, and the value is multiplied by 1,000. As in the authors' code the means
of the kernel include the pairs of an image with itself.

Legend: n images, d numbers per embedding.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Float64

from cogview_jax.evaluation.metrics.clip_score import unit_rows
from cogview_jax.evaluation.metrics.features import CHUNK
from cogview_jax.runtime.errors import InputError

#: The kernel's width and the factor of the paper.
SIGMA, SCALE = 10.0, 1000.0


@dataclass(frozen=True)
class Cmmd:
    """A CMMD.

    Attributes:
        value: biased upwards by about 1,000 (1 - mean kernel) / n for each side; at least 0.
        n: number of images on either side.
    """

    value: float
    n: tuple[int, int]


def cmmd(
    first: Float[Array | np.ndarray, "n1 d"], second: Float[Array | np.ndarray, "n2 d"]
) -> Cmmd:
    """The CMMD between two sets of images, from CLIP embeddings of any length, in float64.

    Raises:
        InputError: an embedding is zero or not finite, or the dimensions differ.
    """
    x, y = unit_rows(first, "embeddings of one set"), unit_rows(second, "embeddings of the other")
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"CMMD between embeddings of different dimensions: {x.shape[1]} and {y.shape[1]}"
        )
    value = _difference(x, x) + _difference(y, y) - 2 * _difference(x, y)
    return Cmmd(max(float(SCALE * value), 0.0), (len(x), len(y)))


def _difference(x: Float64[np.ndarray, "m d"], y: Float64[np.ndarray, "n d"]) -> float:
    """The mean of the kernel less 1, which loses fewer digits; |x - y|^2 = 2 - 2 x·y."""
    total = 0.0
    for i in range(0, len(x), CHUNK):
        for j in range(0, len(y), CHUNK):
            product = x[i : i + CHUNK] @ y[j : j + CHUNK].T
            total += float(np.expm1((product - 1) / SIGMA**2).sum())
    return total / (len(x) * len(y))
