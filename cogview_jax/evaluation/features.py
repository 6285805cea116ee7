"""Features of images by a network whose weights the user names: what FID, IS and KID compare.

Images are resized on threads while the network computes on the batch before. Every batch has the
same size, the last one with black images at its end, so that nothing is compiled twice.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from cogview_jax.data.prefetch import Prefetched
from cogview_jax.evaluation.feature_networks import FEATURE_NETWORKS, listed_features
from cogview_jax.evaluation.resize import RESIZES
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file
from cogview_jax.runtime.workers import cores

__all__ = ["FEATURE_NETWORKS", "FeatureExtractor", "Features", "listed_features"]


class Features(NamedTuple):
    """Of n images: `pooled`, float32 [n, d], and `logits`, float32 [n, k].

    The inception score is of the logits. They have the last layer's bias, except by the protocol
    `tf1`, since torch-fidelity leaves it out.
    """

    pooled: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n k"]


class FeatureExtractor:
    """A feature network with its weights, on all local devices of this process.

    Attributes:
        network, resize: names of `FEATURE_NETWORKS` and `RESIZES`.
        sha256: of the file with the weights.
        dimension: d, numbers per image.
        batch_size: images at a time, a multiple of the number of devices.
    """

    def __init__(
        self, network: str, weights: Path | str, *, resize: str = "clean", batch_size: int = 50
    ):
        """Reads the weights.

        Args:
            network: a name of `FEATURE_NETWORKS`.
            weights: the file.
            resize: how images get the size that the network takes, a name of `RESIZES`.
            batch_size: images at a time; raised to a multiple of the number of local devices.

        Raises:
            InputError: there is no such network, it does not take the protocol, or the file is not
                of it.
        """
        if network not in FEATURE_NETWORKS:
            raise InputError(f"features of {network!r}: choices are {', '.join(FEATURE_NETWORKS)}")
        entry = FEATURE_NETWORKS[network]
        if resize not in entry.resizes:
            raise InputError(
                f"resize {resize!r} for {network}: choices are {', '.join(entry.resizes)}"
            )
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size}: expected at least 1")
        opened = entry.open(Path(weights), resize)
        self.network, self.resize, self.dimension = network, resize, entry.dimension
        self.sha256 = sha256_file(weights)
        self._resized, self._pixels = RESIZES[resize].apply, entry.pixels
        self._features, self._logits = opened.features, opened.logits
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        self._weights, self._normalisation = jax.device_put(
            (opened.weights, [np.array(values, np.float32) for values in entry.resizes[resize]]),
            NamedSharding(mesh, PartitionSpec()),
        )

    @property
    def classes(self) -> int:
        """k, logits per image."""
        row = jax.ShapeDtypeStruct((1, self.dimension), np.float32)
        return jax.eval_shape(self._logits, self._weights, row).shape[1]

    def describe(self) -> dict[str, str]:
        """What a report says of the features: `name` of the network, `sha256` of its weights."""
        return {"name": self.network, "sha256": self.sha256}

    def __call__(self, images: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Iterator[Features]:
        """The features of images of any sizes, batch by batch, in the order of the images.

        At most four batches are in memory.

        Raises:
            InputError: an image is not uint8 [h, w, 3].
        """
        batches = Prefetched(self._batches(images), depth=1)
        computed: tuple[Features, int] | None = None
        try:
            while True:
                try:
                    batch, count = batches.get()
                except StopIteration:
                    break
                pooled = _pooled(self._features, self._weights, self._normalisation, batch)
                logits = _logits(self._logits, self._weights, pooled)
                # The results before are fetched when the devices have work again.
                if computed is not None:
                    yield _fetched(*computed)
                computed = Features(pooled, logits), count
            if computed is not None:
                yield _fetched(*computed)
        finally:
            batches.close()

    def _batches(self, images: Iterable[np.ndarray]) -> Iterator[tuple[jax.Array, int]]:
        """Resized batches on the devices, and how many images each has."""
        numbered = enumerate(images)
        with ThreadPoolExecutor(cores()) as threads:
            while chunk := list(itertools.islice(numbered, self.batch_size)):
                batch = np.zeros((self.batch_size, self._pixels, self._pixels, 3), np.float32)
                for row, image in zip(batch, threads.map(self._resize, chunk), strict=False):
                    row[:] = image
                yield jax.device_put(batch, self._rows), len(chunk)

    def _resize(self, numbered: tuple[int, np.ndarray]) -> np.ndarray:
        number, image = numbered
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"image {number} is {image.dtype} {list(image.shape)}, expected uint8 [h, w, 3]"
            )
        return self._resized(image, self._pixels)


@functools.partial(jax.jit, static_argnums=0)
def _pooled(features: Callable[..., Any], weights: Any, normalisation: Any, x: Any) -> jax.Array:
    shift, scale = normalisation
    return features(weights, (x - shift) / scale)


@functools.partial(jax.jit, static_argnums=0)
def _logits(logits: Callable[..., Any], weights: Any, pooled: jax.Array) -> jax.Array:
    return logits(weights, pooled)


def _fetched(computed: Features, count: int) -> Features:
    """Copies the first `count` rows to the host."""
    return Features(*(np.asarray(array)[:count] for array in computed))
