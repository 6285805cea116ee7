"""FID: the Fréchet distance between two Gaussians, and its value for infinitely many images.

The distance is that of Heusel et al. 2017 (arXiv 1706.08500), |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1
S2)^(1/2)), in float64. No square root of a matrix that is not symmetric is taken: where S1 = F^T F,
the eigenvalues of S1 S2 other than zero are those of the symmetric matrix F S2 F^T. F has one row
per eigenvalue of S1 that is not a rounding error, so the result is right for singular covariances.

Legend: n images, d numbers per image, r rank.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Array, Float, Float64

from cogview_jax.evaluation.metrics.features import CHUNK, Rows, check_features
from cogview_jax.evaluation.metrics.moments import Moments
from cogview_jax.runtime.errors import InputError

#: An eigenvalue is a rounding error if it is at most this many times the size of the error. The
#: most negative eigenvalue shows that size.
NOISE = 4.0
#: A matrix is no covariance if a negative eigenvalue is larger than this share of the largest.
INDEFINITE = 1e-3


class Gaussian(Protocol):
    """What the distance needs to know: `Moments` and `ReferenceStatistics` know it."""

    @property
    def count(self) -> int | None:
        """Number of images; None where nobody knows."""

    @property
    def mean(self) -> Float64[np.ndarray, " d"]:
        """Mean of the features [d]."""

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """Covariance of the features [d, d], with count - 1 in the denominator."""


@dataclass(frozen=True)
class FrechetDistance:
    """A Fréchet distance.

    Attributes:
        value: the distance, squared as is usual; at least 0.
        n: number of images on either side; None where nobody knows.
        dimensions: numbers per image.
    """

    value: float
    n: tuple[int | None, int | None]
    dimensions: int

    @property
    def note(self) -> str | None:
        """The note on the bias of the side with fewer images, or None."""
        counts = [count for count in self.n if count is not None]
        return bias_note(min(counts), self.dimensions) if counts else None


@dataclass(frozen=True)
class Extrapolation:
    """A line through the FID of several numbers of images N, over 1 / N.

    Attributes:
        value: the line at 1 / N = 0, FID for infinitely many images on this side.
        standard_error: of `value`, from the residuals of the line. The subsets are of the same
            images, so it does not tell how far other images would move the value.
        slope: of the line; positive, since FID falls as N grows.
        n: number of images that there were.
        sizes: the numbers N.
        distances: the FID of each.
    """

    value: float
    standard_error: float
    slope: float
    n: int
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_distance(a: Gaussian, b: Gaussian) -> FrechetDistance:
    """The Fréchet distance between two Gaussians; for 2,048 dimensions it takes seconds.

    Raises:
        InputError: the two have different numbers of dimensions, fewer than two images, or a
            covariance with a negative variance.
    """
    return _Side(a).distance(b)


def fid_infinity(
    features: Float[Array | np.ndarray, "n d"] | Rows,
    reference: Gaussian,
    *,
    points: int = 15,
    least: int | None = None,
    seed: int = 0,
) -> Extrapolation:
    """FID for infinitely many images, as Chong and Forsyth 2020 (arXiv 1911.07023) estimate it.

    FID of N images is larger than that of infinitely many by about a constant over N, and the
    constant depends on the generator. FID is therefore computed for several random subsets, whose
    sizes are evenly spaced up to all images, and a line over 1 / N is fitted by least squares. The
    bias of the reference, which has a fixed number of images, stays.

    Args:
        features: of the generated images.
        reference: moments of the real images.
        points: number of subsets.
        least: size of the smallest one. None for a tenth of the images (5,000 of 50,000 in the
            paper), but for as many as there are dimensions, or half of the images, if that is more:
            below, FID is not yet a line over 1 / N.
        seed: of the subsets.

    Raises:
        InputError: there are fewer than three points or fewer images than points.
    """
    features = check_features(features, "features of the generated images", least=4)
    n, dimensions = features.shape
    if least is None:
        least = max(n // 10, min(dimensions, n // 2))
    if points < 3:
        raise InputError(f"{points} points of a line and its error: expected at least 3")
    if not 2 <= least <= n - points + 1:
        raise InputError(
            f"{points} subsets of {least} to {n} images: expected a smallest size from 2 to"
            f" {n - points + 1}, so that all sizes differ"
        )
    rng, side = np.random.default_rng(seed), _Side(reference)
    sizes = [int(size) for size in np.linspace(least, n, points)]
    values = []
    for size in sizes:
        rows = np.sort(rng.permutation(n)[:size])
        moments = Moments.empty(dimensions)
        for start in range(0, size, CHUNK):
            moments = moments.add(features[rows[start : start + CHUNK]])
        values.append(side.distance(moments).value)
    intercept, slope, error = _fit_line(1 / np.asarray(sizes), np.asarray(values))
    return Extrapolation(intercept, error, slope, n, tuple(sizes), tuple(values))


def bias_note(count: int, dimensions: int) -> str | None:
    """A line on the bias of FID if `count` images are too few for `dimensions`, else None.

    FID of samples is always larger than that of the distributions. With at most as many images as
    dimensions the covariance is singular as well, and most of the value may be bias.
    """
    missing = dimensions + 1 - count
    if missing <= 0:
        return None
    return (
        f"FID is biased upwards: {count:,} images are {missing:,} fewer than a covariance of"
        f" {dimensions:,} dimensions needs ({dimensions + 1:,}); compare it only with FID of as"
        " many images, or use KID, which is unbiased"
    )


class _Side:
    """One side of a distance, whose covariance has been factored once for any number of others."""

    def __init__(self, moments: Gaussian):
        covariance = moments.covariance
        self.count, self.mean, self.trace = moments.count, moments.mean, np.trace(covariance)
        values, vectors = np.linalg.eigh(covariance)
        if values[0] < -INDEFINITE * abs(values[-1]):
            raise InputError(
                f"a covariance with eigenvalues from {values[0]:.3g} to {values[-1]:.3g}: expected"
                " none below 0"
            )
        kept = values > _noise(values)
        self.factor = np.sqrt(values[kept])[:, None] * vectors[:, kept].T  # [r, d]

    def distance(self, other: Gaussian) -> FrechetDistance:
        if self.mean.shape != other.mean.shape:
            raise InputError(
                "Fréchet distance between features of different numbers of dimensions:"
                f" {len(self.mean)} and {len(other.mean)}"
            )
        covariance = other.covariance
        values = np.linalg.eigvalsh(self.factor @ covariance @ self.factor.T)
        root = np.sqrt(values[values > _noise(values)]).sum()
        means = np.sum((self.mean - other.mean) ** 2)
        value = means + self.trace + np.trace(covariance) - 2 * root
        # Two equal sides give a rounding error, which may be negative.
        return FrechetDistance(max(float(value), 0.0), (self.count, other.count), len(self.mean))


def _noise(values: Float64[np.ndarray, " r"]) -> float:
    """The value up to which sorted eigenvalues, none truly negative, are rounding errors."""
    if not len(values):
        return 0.0
    return NOISE * max(-values[0], np.finfo(np.float64).eps * values[-1], 0.0)


def _fit_line(
    x: Float64[np.ndarray, " p"], y: Float64[np.ndarray, " p"]
) -> tuple[float, float, float]:
    """Least squares: the intercept, the slope, and the standard error of the intercept."""
    centred = x - x.mean()
    spread = np.sum(centred**2)
    slope = np.sum(centred * y) / spread
    intercept = y.mean() - slope * x.mean()
    variance = np.sum((y - intercept - slope * x) ** 2) / (len(x) - 2)
    error = np.sqrt(variance * (1 / len(x) + x.mean() ** 2 / spread))
    return float(intercept), float(slope), float(error)
