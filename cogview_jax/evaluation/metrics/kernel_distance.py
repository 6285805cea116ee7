"""KID: the squared maximum mean discrepancy of features under a cubic kernel.

Bińkowski et al. 2018 (arXiv 1801.01401): k(x, y) = (x·y / d + 1)^3. Unlike FID it is unbiased, so
it may be negative, and values from different numbers of images can be compared.

Legend: n images, d numbers per image, m images in a subset.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Float64

from cogview_jax.evaluation.metrics.features import Rows, check_features
from cogview_jax.runtime.errors import InputError


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance.

    Attributes:
        mean: over the subsets.
        std: over the subsets, with their number in the denominator. It tells how far one subset is
            from the mean. It is not the standard error of the mean: subsets share images.
        subsets: how many there were.
        subset_size: images of a subset on either side.
        requested_size: images of a subset that were asked for; more than `subset_size` where a set
            has fewer images.
        n: number of images on either side.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int
    requested_size: int
    n: tuple[int, int]

    @property
    def note(self) -> str | None:
        """A line that says that subsets are smaller than asked for, or None."""
        if self.subset_size == self.requested_size:
            return None
        return (
            f"KID: subsets of {self.subset_size:,} images, not {self.requested_size:,}, since a set"
            " has no more; they are all the same there, and the deviation is too small"
        )


def kernel_distance(
    first: Float[Array | np.ndarray, "n1 d"] | Rows,
    second: Float[Array | np.ndarray, "n2 d"] | Rows,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> KernelDistance:
    """The kernel distance between two sets, as the mean over random subsets, in float64.

    The rows of a subset are sampled without replacement by one `numpy.random.RandomState(seed)`:
    for each subset those of `first`, then those of `second`. These are torch-fidelity's subsets;
    clean-fid's are those of the sets in the other order. Only the rows of one subset are converted
    to float64 at a time, so that memory hardly grows beyond the two arrays.

    Args:
        first: features of one set.
        second: features of the other set.
        subsets: how many.
        subset_size: images of a subset on either side, reduced to the size of the smaller set.
        seed: of the subsets.

    Raises:
        InputError: a set has fewer than two images, or the sets have different dimensions.
    """
    for name, value, least in (("subsets", subsets, 1), ("images in a subset", subset_size, 2)):
        if value < least:
            raise InputError(f"KID with {value} {name}: expected at least {least}")
    first = check_features(first, "first set of KID", least=2)
    second = check_features(second, "second set of KID", least=2)
    if first.shape[1] != second.shape[1]:
        raise InputError(
            "KID between features of different numbers of dimensions:"
            f" {first.shape[1]} and {second.shape[1]}"
        )
    rng, n = np.random.RandomState(seed), (len(first), len(second))
    size, values = min(subset_size, *n), []
    for _ in range(subsets):
        x, y = (
            np.asarray(features[rng.choice(len(features), size, replace=False)], np.float64)
            for features in (first, second)
        )
        values.append(squared_mmd(x, y))
    return KernelDistance(
        float(np.mean(values)), float(np.std(values)), subsets, size, subset_size, n
    )


def squared_mmd(x: Float64[np.ndarray, "m d"], y: Float64[np.ndarray, "k d"]) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy under the cubic kernel."""
    within = sum(_mean_of_pairs(rows) for rows in (x, y))
    return float(within - 2 * np.mean(_kernel(x, y)))


def _mean_of_pairs(rows: Float64[np.ndarray, "m d"]) -> float:
    """The mean of the kernel over ordered pairs of different rows."""
    kernel, m = _kernel(rows, rows), len(rows)
    return (np.sum(kernel) - np.trace(kernel)) / (m * (m - 1))


def _kernel(x: Float64[np.ndarray, "m d"], y: Float64[np.ndarray, "k d"]) -> np.ndarray:
    product = x @ y.T
    product /= x.shape[1]
    product += 1
    return product * product * product  # several times as fast as a power
