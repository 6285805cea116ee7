"""Stage 1: reconstruction of pictures through the codebook."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cogview_jax.tokenizers import quantiser
from cogview_jax.tokenizers.codec import Codec, CodecConfig, normalise
from cogview_jax.tokenizers.quantiser import Codebook
from cogview_jax.training.objective import Terms


class Assigned(NamedTuple):
    """What a batch tells the codebook: hits [K], sums [K, D], and for every code a candidate vector [K, D] to move to."""

    hits: jax.Array
    sums: jax.Array
    candidates: jax.Array


class CodecObjective:
    """Mean squared error of normalised pixels plus the commitment of the encoder to its codes.

    Batches hold "image", uint8 [B, h, w, 3]; `global_batch` is their B. decay: of the codebook's moving averages. revive_below: a code
    used less than this share of the mean use is moved onto a vector of the batch.
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
        """Sums over pictures of the two losses; metrics in units of pixels in [0, 1]; what the codebook needs."""
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
            self._assigned(jax.lax.stop_gradient(vectors), ids, batch["row"], key),
        )

    def finish(
        self, extras: Codebook, carry: Assigned, key: jax.Array
    ) -> tuple[Codebook, dict[str, jax.Array]]:
        """The codebook after the batch; usage and perplexity of the batch's codes, and how many codes were moved."""
        codebook = quantiser.update(extras, carry.hits, carry.sums, self.decay)
        codebook, revived = quantiser.revive(
            codebook, carry.candidates, carry.hits.sum(), self.revive_below
        )
        share = carry.hits / carry.hits.sum()
        entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0))
        return codebook, {
            "codebook_usage": jnp.mean(carry.hits > 0),
            "perplexity": jnp.exp(entropy),
            "revived": revived,
        }

    def _assigned(
        self, vectors: jax.Array, ids: jax.Array, row: jax.Array, key: jax.Array
    ) -> Assigned:
        """vectors [b, h, w, D] and ids [b, h, w] of the rows numbered `row` [b] of the whole batch.

        The candidates are drawn from the whole batch: a part gives those that fall on its rows and zeros for the rest, so that
        the parts' sum is what the whole batch gives.
        """
        size, width = self.codec.config.codebook, vectors.shape[-1]
        flat = vectors.reshape(-1, width)
        hits, sums = quantiser.assignments(flat, ids.reshape(-1), size)
        cells = self.tokens_per_row
        chosen = jax.random.randint(key, (size,), 0, self.global_batch * cells)
        numbers = (row[:, None] * cells + jnp.arange(cells)).reshape(-1)
        order = jnp.argsort(numbers)
        place = jnp.searchsorted(numbers, chosen, sorter=order)
        place = order[jnp.minimum(place, len(numbers) - 1)]
        candidates = jnp.where((numbers[place] == chosen)[:, None], flat[place], 0)
        return Assigned(hits, sums, candidates)


def training_flops(config: CodecConfig) -> float:
    """Floating-point operations of a forward and backward pass over one picture: 6 a multiply-add of the convolutions."""
    channels, size, inner = (3, *config.level_channels), config.image_size, config.grid**2
    total = 0
    for level, (outer, deeper) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
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
