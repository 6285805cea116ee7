"""Stage 1: reconstruction of pictures through the codebook."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cogview_jax.tokenizers import quantiser
from cogview_jax.tokenizers.codec import Codec, CodecConfig, normalise
from cogview_jax.tokenizers.quantiser import Assignments, Codebook
from cogview_jax.training.objective import Terms


class BatchVectors(NamedTuple):
    """What a batch tells the codebook, as sums over its parts.

    candidates [K, D] and worthwhile [K]: see `quantiser.revive`; zeros from the parts of a batch
    that do not hold them.
    """

    assigned: Assignments
    candidates: jax.Array
    worthwhile: jax.Array


class CodecObjective:
    """Mean squared error of normalised pixels plus the commitment of the encoder to its codes.

    Batches hold "image", uint8 [B, h, w, 3]; `global_batch` is their B. decay: of the codebook's
    moving averages. revive_below: a code used less than this share of the mean use is moved onto a
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
    ):
        self.codec = codec
        self.global_batch = global_batch
        self.commitment = commitment
        self.decay = decay
        self.revive_below = revive_below
        self.tokens_per_row = codec.config.grid**2
        self.flops_per_row = training_flops(codec.config)

    def init(self, key: jax.Array) -> tuple[dict, Codebook]:
        """Boxed parameters and an unused codebook."""
        config = self.codec.config
        pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
        params_key, codebook_key = jax.random.split(key)
        codebook = quantiser.initial_codebook(codebook_key, config.codebook, config.code_width)
        return self.codec.init(params_key, pixels)["params"], codebook

    def weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The number of pictures."""
        return jnp.float32(batch["image"].shape[0])

    def terms(
        self, params: dict, extras: Codebook, batch: dict[str, jax.Array], key: jax.Array
    ) -> Terms:
        """Sums over pictures: the losses, metrics (of pixels in [0, 1]), the codebook's carry."""
        config = self.codec.config
        variables = {"params": params}
        pixels = normalise(config, batch["image"])
        vectors = self.codec.apply(variables, pixels, method=self.codec.encode)
        ids = quantiser.nearest(extras.codes, vectors)
        quantised = extras.codes[ids]
        decoded = self.codec.apply(
            variables, quantiser.straight_through(vectors, quantised), method=self.codec.decode
        )
        error = (decoded - pixels) ** 2
        reconstruction = jnp.mean(error, axis=(1, 2, 3))
        commitment = jnp.mean((vectors - quantised) ** 2, axis=(1, 2, 3))
        count = jnp.float32(len(reconstruction))
        l2 = jnp.mean(error * jnp.asarray(config.deviation) ** 2, axis=(1, 2, 3))
        return Terms(
            jnp.sum(reconstruction + self.commitment * commitment),
            {
                "l2": (jnp.sum(l2), count),
                "psnr": (jnp.sum(-10 * jnp.log10(jnp.maximum(l2, 1e-10))), count),
                "commitment": (jnp.sum(commitment), count),
            },
            self._vectors(extras, jax.lax.stop_gradient(vectors), ids, batch["row"], key),
        )

    def finish(
        self, extras: Codebook, carry: BatchVectors, key: jax.Array
    ) -> tuple[Codebook, dict[str, jax.Array]]:
        """The codebook after the batch; usage and perplexity of the batch's codes, codes moved."""
        hits = carry.assigned.hits
        codebook, revived = quantiser.revive(
            quantiser.update(extras, carry.assigned, self.decay),
            carry.candidates,
            carry.worthwhile > 0,
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

    def _vectors(
        self,
        codebook: Codebook,
        vectors: jax.Array,
        ids: jax.Array,
        row: jax.Array,
        key: jax.Array,
    ) -> BatchVectors:
        """vectors [b, h, w, D] and ids [b, h, w] of the rows numbered `row` [b] of the batch.

        The candidates are drawn from the whole batch: a part gives those that fall on its rows and
        zeros for the rest, so that the parts' sum is what the whole batch gives.
        """
        size, width = codebook.codes.shape
        flat, ids = vectors.reshape(-1, width), ids.reshape(-1)
        cells = self.tokens_per_row
        chosen = jax.random.randint(key, (size,), 0, self.global_batch * cells)
        numbers = (row[:, None] * cells + jnp.arange(cells)).reshape(-1)
        place = jnp.minimum(jnp.searchsorted(numbers, chosen), len(numbers) - 1)
        here = numbers[place] == chosen
        distance = jnp.sum((flat - codebook.codes[ids]) ** 2, axis=1)
        return BatchVectors(
            quantiser.assign(codebook.codes, flat, ids),
            jnp.where(here[:, None], flat[place], 0),
            jnp.where(here & (distance[place] > codebook.error), 1.0, 0.0),
        )


def training_flops(config: CodecConfig) -> float:
    """Floating-point operations of a forward and backward pass over one picture.

    6 a multiply-add of the convolutions.
    """
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
