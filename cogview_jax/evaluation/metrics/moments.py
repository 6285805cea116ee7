"""Mean and covariance of features, in float64, batch by batch and shard by shard.

Legend: n images, d numbers per image.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Float64

from cogview_jax.evaluation.metrics.features import Rows, check_features, chunks
from cogview_jax.runtime.errors import InputError


@dataclass(frozen=True, eq=False)
class Moments:
    """The first two moments of features.

    It is a value: `add` and `merge` return new moments. They use the updates of Chan, Golub and
    LeVeque (1979), which never subtract large sums from each other, so the order and the size of
    batches change the result by rounding errors alone.

    Attributes:
        count: number of images.
        mean: of the features [d].
        scatter: sum of (x - mean) (x - mean)^T over all images [d, d].
    """

    count: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]

    @classmethod
    def empty(cls, dimensions: int) -> "Moments":
        """Moments of no images, whose features have `dimensions` numbers."""
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @classmethod
    def of(cls, features: Float[Array | np.ndarray, "n d"] | Rows) -> "Moments":
        """Moments of the features of all images at once."""
        features = check_features(features)
        return cls.empty(features.shape[1]).add(features)

    @property
    def dimensions(self) -> int:
        """Numbers per image, d."""
        return len(self.mean)

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """The sample covariance, scatter / (count - 1).

        Raises:
            InputError: there are fewer than two images.
        """
        if self.count < 2:
            raise InputError(f"a covariance of {self.count} images: expected at least 2")
        return self.scatter / (self.count - 1)

    def add(self, features: Float[Array | np.ndarray, "n d"] | Rows) -> "Moments":
        """Moments with further images; features of any float type are converted to float64.

        Raises:
            InputError: the features have another number of dimensions, or are not finite.
        """
        features = check_features(features, least=0)
        self._check_dimensions(features.shape[1])
        count, mean, scatter = self.count, self.mean, self.scatter
        for rows in chunks(features):
            total, batch_mean = count + len(rows), rows.mean(axis=0)
            delta = batch_mean - mean
            # One product for both terms of the update; NumPy makes it exactly symmetric.
            spread = np.vstack([rows - batch_mean, delta * np.sqrt(count * len(rows) / total)])
            scatter = scatter + spread.T @ spread
            count, mean = total, mean + delta * (len(rows) / total)
        return Moments(count, mean, scatter)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the images of both; the order of the two does not matter.

        Raises:
            InputError: the two have different numbers of dimensions.
        """
        self._check_dimensions(other.dimensions)
        total = self.count + other.count
        if total == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / total)
        between = np.outer(delta, delta) * (self.count * other.count / total)
        return Moments(total, mean, self.scatter + other.scatter + between)

    def _check_dimensions(self, dimensions: int) -> None:
        if dimensions != self.dimensions:
            raise InputError(f"features of {dimensions} dimensions, expected {self.dimensions}")
