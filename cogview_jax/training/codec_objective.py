"""Stage 1: reconstruction of images through the codebook (arXiv 2105.13290, section 3.1).

Legend: B rows of a batch, b rows of a part of it, h and w pixels, N codes along a side of the grid,
K codes of the codebook, D width of a code.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cogview_jax.tokenizers import quantiser
from cogview_jax.tokenizers.codec import Codec, CodecConfig, normalise
from cogview_jax.tokenizers.quantiser import Assignments, Codebook
from cogview_jax.training.objective import ModelValues, StepSums


class ImageExample(NamedTuple):
    """One row for training, uint8 [h, w, 3]; a batch has its rows as a first axis."""

    image: Any


class BatchVectors(NamedTuple):
    """What the codebook learns from a batch, as sums over the parts of the batch.

    candidates [K, D] and worthwhile [K]: see `quantiser.revive`. A part of a batch has zeros for
    candidates from other parts.
    """

    assigned: Assignments
    candidates: Array
    worthwhile: Array


class CodecObjective:
    """Mean squared error of normalised pixels plus the commitment of the encoder to its codes.

    Args:
        codec: the encoder and decoder.
        global_batch: rows of a batch (B).
        commitment: weight of the commitment in the loss.
        decay: of the moving averages of the codebook.
        revive_below: a code that is used less than this share of the mean use is moved onto a
            vector of the batch.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        global_batch: int,
        commitment: float = 0.25,
        decay: float = 0.99,
        revive_below: float = 0.03,
    ) -> None:
        self.codec = codec
        self.global_batch = global_batch
        self.commitment = commitment
        self.decay = decay
        self.revive_below = revive_below
        self.tokens_per_row = codec.config.grid**2
        self.flops_per_row = training_flops(codec.config)

    def init(self, key: Key[Array, ""]) -> ModelValues:
        """Boxed parameters and an unused codebook."""
        config = self.codec.config
        pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
        params_key, codebook_key = jax.random.split(key)
        codebook = quantiser.initial_codebook(codebook_key, config.codebook, config.code_width)
        return ModelValues(self.codec.init(params_key, pixels)["params"], codebook)

    def normalizer(self, batch: ImageExample) -> Float[Array, ""]:
        """The number of images."""
        return jnp.float32(batch.image.shape[0])

    def sums(
        self,
        params: Any,
        model_state: Codebook,
        batch: ImageExample,
        rows: Int[Array, " b"],
        key: Key[Array, ""],
    ) -> StepSums:
        """Sums over images: losses, metrics (of pixels in [0, 1]), and what moves the codebook."""
        config = self.codec.config
        variables = {"params": params}
        apply: Callable[..., Any] = self.codec.apply
        pixels = normalise(config, batch.image)
        vectors = apply(variables, pixels, method=self.codec.encode)
        ids = quantiser.nearest(model_state.codes, vectors)
        quantised = model_state.codes[ids]
        decoded = apply(
            variables, quantiser.straight_through(vectors, quantised), method=self.codec.decode
        )
        error = (decoded - pixels) ** 2
        reconstruction = jnp.mean(error, axis=(1, 2, 3))
        commitment = jnp.mean((vectors - quantised) ** 2, axis=(1, 2, 3))
        count = jnp.float32(len(reconstruction))
        l2 = jnp.mean(error * jnp.asarray(config.std) ** 2, axis=(1, 2, 3))
        return StepSums(
            jnp.sum(reconstruction + self.commitment * commitment),
            {
                "l2": (jnp.sum(l2), count),
                "psnr": (jnp.sum(-10 * jnp.log10(jnp.maximum(l2, 1e-10))), count),
                "commitment": (jnp.sum(commitment), count),
            },
            self._vectors(model_state, jax.lax.stop_gradient(vectors), ids, rows, key),
        )

    def finish(
        self, model_state: Codebook, aux: BatchVectors, key: Key[Array, ""]
    ) -> tuple[Codebook, dict[str, Array]]:
        """The codebook after the batch, and metrics of it.

        codebook_usage: the share of codes that are in use. perplexity: of the codes of the batch.
        revived: how many codes were moved.
        """
        hits = aux.assigned.hits
        codebook, revived = quantiser.revive(
            quantiser.update(model_state, aux.assigned, self.decay),
            aux.candidates,
            aux.worthwhile > 0,
            hits.sum(),
            self.revive_below,
        )
        share = hits / hits.sum()
        entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0))
        return codebook, {
            "codebook_usage": jnp.mean(codebook.counts > 0.01 * jnp.mean(codebook.counts)),
            "perplexity": jnp.exp(entropy),
            "revived": revived,
        }

    def bundle_values(self, values: ModelValues) -> ModelValues:
        """All of them: parameters of the codec and the codebook."""
        return values

    def with_bundle_values(self, values: ModelValues, given: ModelValues) -> ModelValues:
        """`given`, since a bundle holds all values."""
        return given

    def _vectors(
        self,
        codebook: Codebook,
        vectors: Float[Array, "b N N D"],
        ids: Int[Array, "b N N"],
        rows: Int[Array, " b"],
        key: Key[Array, ""],
    ) -> BatchVectors:
        """What the codebook learns from the rows of a part of the batch.

        Candidates are sampled from the whole batch. A part of it has those that lie in its own rows
        and zeros in place of the others, so that the sum over all parts has every candidate once.
        """
        size, width = codebook.codes.shape
        flat, ids = vectors.reshape(-1, width), ids.reshape(-1)
        cells = self.tokens_per_row
        chosen = jax.random.randint(key, (size,), 0, self.global_batch * cells)
        numbers = (rows[:, None] * cells + jnp.arange(cells)).reshape(-1)
        place = jnp.minimum(jnp.searchsorted(numbers, chosen), len(numbers) - 1)
        here = numbers[place] == chosen
        distance = jnp.sum((flat - codebook.codes[ids]) ** 2, axis=1)
        return BatchVectors(
            quantiser.assign(codebook.codes, flat, ids),
            jnp.where(here[:, None], flat[place], 0),
            jnp.where(here & (distance[place] > codebook.error), 1.0, 0.0),
        )


def training_flops(config: CodecConfig) -> float:
    """FLOPs of a forward and backward pass over one image: 6 a multiply-add of the convolutions."""
    channels, size, inner = (3, *config.level_channels), config.image_size, config.grid**2
    total = 0
    for level, (outer, deeper) in enumerate(itertools.pairwise(channels)):
        cells = (size >> (level + 1)) ** 2
        total += 16 * cells * outer * deeper  # encoder
    last = channels[-1]
    total += inner * last * config.code_width
    total += config.residual_blocks * 2 * inner * 10 * last**2
    into = config.code_width
    if config.residual_blocks:
        total += inner * 9 * into * last
        into = last
    for level, out in reversed(list(enumerate(channels[1:]))):
        total += 16 * (size >> (level + 1)) ** 2 * into * out
        into = out
    return 6.0 * (total + size**2 * into * 3)
