"""A CLIP in memory: the embeddings of images and texts, batch by batch.

Similarities of such embeddings are CLIPScore (Hessel et al. 2021, arXiv 2104.08718).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, UInt8

from cogview_jax.interop.clip import CONFIG, WEIGHTS, clip_folder, read_clip
from cogview_jax.interop.clip_text import LENGTH, VOCABULARY, ClipTokenizer
from cogview_jax.models.networks.clip import (
    LARGEST_ID,
    ClipWeights,
    clip_pixels,
    image_embeddings,
    normalise,
    text_embeddings,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file


class ClipModel:
    """Both towers of a CLIP, on all local devices of this process, and its tokenizer.

    Attributes:
        weights: of both towers.
        tokenizer: texts to tokens.
        sha256: of the file of the weights.
        batch_size: images or texts that are computed together, a multiple of the number of devices;
            the last of fewer are padded.
    """

    def __init__(
        self, weights: ClipWeights, tokenizer: ClipTokenizer, sha256: str, batch_size: int = 32
    ):
        """`batch_size` is raised to a multiple of the number of local devices."""
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self.weights: ClipWeights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
        self.tokenizer, self.sha256 = tokenizer, sha256
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("data"))

    @classmethod
    def read(cls, path: Path | str, batch_size: int = 32) -> "ClipModel":
        """The model in a folder of Hugging Face's transformers.

        Args:
            path: a folder with `model.safetensors`, `config.json`, `vocab.json` and `merges.txt`,
                or the first of them.
            batch_size: images or texts that are computed together.

        Raises:
            InputError: a file is missing, is of another model, or does not fit the others.
        """
        folder = clip_folder(path)
        tokenizer, weights = ClipTokenizer.read(folder), read_clip(folder)
        largest, rows = max(tokenizer.vocabulary.values()), len(weights.text["tokens"])
        if largest >= rows:
            raise InputError(
                f"{folder / VOCABULARY} has the id {largest}, but {WEIGHTS} has {rows} tokens"
            )
        end = weights.config.end_token
        if tokenizer.end != (largest if end == LARGEST_ID else end):
            expected = f"the largest id, {largest}," if end == LARGEST_ID else str(end)
            raise InputError(
                f"{folder / VOCABULARY} has the end token {tokenizer.end}: expected {expected}"
                f" by eos_token_id = {end} in {CONFIG}"
            )
        return cls(weights, tokenizer, sha256_file(folder / WEIGHTS), batch_size)

    @property
    def dimension(self) -> int:
        """d, numbers of an embedding."""
        return self.weights.text["projection"].shape[1]

    def images(self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "n d"]:
        """The embeddings of images [h, w, 3] of any sizes: float32 [n, d], of unit length."""
        size = self.weights.config.image_size
        batches = ([clip_pixels(image, size) for image in batch] for batch in self._batches(images))
        return self._embeddings(image_embeddings, batches)

    def texts(self, texts: Iterable[str]) -> Float32[np.ndarray, "n d"]:
        """The embeddings of texts: float32 [n, d], of unit length; what is too long is cut off."""
        length = min(LENGTH, self.weights.max_tokens)
        batches = (self.tokenizer(batch, length) for batch in self._batches(texts))
        return self._embeddings(text_embeddings, batches)

    def _batches(self, items: Iterable[Any]) -> Iterator[list[Any]]:
        remaining = iter(items)
        while batch := list(itertools.islice(remaining, self.batch_size)):
            yield batch

    def _embeddings(
        self, embed: Callable[..., jax.Array], batches: Iterable[Any]
    ) -> Float32[np.ndarray, "n d"]:
        found = [np.empty((0, self.dimension), np.float32)]
        for batch in batches:
            rows = np.asarray(batch)
            short = self.batch_size - len(rows)
            padded = np.pad(rows, ((0, short), *((0, 0),) * (rows.ndim - 1)))
            padded = jax.device_put(padded, self._rows)
            found.append(np.asarray(normalise(embed(self.weights, padded)))[: len(rows)])
        return np.concatenate(found)
