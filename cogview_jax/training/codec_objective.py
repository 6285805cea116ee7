"""Stage 1: reconstruction of images through the codebook (arXiv 2105.13290, section 3.1).

Legend: B rows of a batch, b rows of a part of it, h and w pixels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Real

from cogview_jax.tokenizers.codecs.codec import Codec, CodecConfig, encode_images, normalise
from cogview_jax.tokenizers.quantisers.quantiser import (
    CodebookTraining,
    Quantised,
    hits_of,
    use_metrics,
)
from cogview_jax.training.objective import ModelValues, StepSums


class ImageExample(NamedTuple):
    """One row for training, uint8 [h, w, 3]; a batch has its rows as a first axis."""

    image: Any


class CodecObjective:
    """Mean squared error of normalised pixels plus the quantiser's loss.

    Parameters are those of the encoder and decoder, and under "quantiser" those of the quantiser
    where it has any. The model state is the quantiser's.

    Args:
        codec: the encoder and decoder.
        global_batch: rows of a batch (B).
        codebook: how the codebook learns.
        fixed_codes: the decoder reads the codes that a bundle of these values gives images, found
            in float32 whatever the precision of training. Nothing before the codes has a gradient
            or a loss, and the quantiser stays as it is.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        global_batch: int,
        codebook: CodebookTraining | None = None,
        fixed_codes: bool = False,
    ) -> None:
        self.codec = codec
        self.quantiser = codec.config.quantiser
        self.global_batch = global_batch
        self.codebook = codebook or CodebookTraining()
        self.fixed_codes = fixed_codes
        self.tokens_per_row = codec.config.grid**2
        self.flops_per_row = training_flops(codec.config, decoder_only=fixed_codes)

    def init(self, key: Key[Array, ""]) -> ModelValues:
        """Boxed parameters and the state of a codebook that nobody has used."""
        config = self.codec.config
        pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
        params_key, codebook_key = jax.random.split(key)
        own, state = self.quantiser.init(codebook_key, config.codebook, config.code_width)
        params = self.codec.init(params_key, pixels)["params"]
        return ModelValues(params | ({"quantiser": own} if own else {}), state)

    def normalizer(self, batch: ImageExample) -> Float[Array, ""]:
        """The number of images."""
        return jnp.float32(batch.image.shape[0])

    def sums(
        self,
        params: Any,
        model_state: Any,
        batch: ImageExample,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
        whole: Any = None,
    ) -> StepSums:
        """Sums over images: losses, metrics (of pixels in [0, 1]), and what moves the codebook."""
        config, variables = self.codec.config, {"params": params}
        pixels = normalise(config, batch.image)
        quantised = self.encode(params, model_state, batch.image, rows, key, whole)
        decoded = self.codec.apply(variables, quantised.vectors, method=self.codec.decode)
        error = (decoded - pixels) ** 2
        reconstruction = jnp.mean(error, axis=(1, 2, 3))
        count = jnp.float32(len(reconstruction))
        l2 = jnp.mean(error * jnp.asarray(config.std) ** 2, axis=(1, 2, 3))
        metrics = self.pixel_metrics(l2) | quantised.metrics
        return StepSums(
            jnp.sum(reconstruction + quantised.loss),
            {name: (jnp.sum(values), count) for name, values in metrics.items()},
            quantised.aux,
        )

    def batch_sums(
        self,
        params: Any,
        model_state: Any,
        batch: ImageExample,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
    ) -> Any:
        """What the quantiser has to know of the whole batch."""
        if self.fixed_codes:
            return ()
        pixels = normalise(self.codec.config, batch.image)
        vectors = self.codec.apply({"params": params}, pixels, method=self.codec.encode)
        return self.quantiser.batch_sums(params.get("quantiser", {}), vectors)

    def encode(
        self,
        params: Any,
        codebook: Any,
        images: Real[Array | np.ndarray, "b h w 3"],
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
        whole: Any = None,
    ) -> Quantised:
        """What the decoder reads of some images, with the quantiser's loss, metrics and sums."""
        config = self.codec.config
        if self.fixed_codes:
            ids = encode_images(config.module(), params, codebook, images)
            vectors = self.quantiser.vectors(params.get("quantiser", {}), codebook, ids)
            hits = hits_of(ids, config.codebook)
            return jax.lax.stop_gradient(Quantised(vectors, jnp.zeros(len(images)), {}, hits))
        pixels = normalise(config, images)
        vectors = self.codec.apply({"params": params}, pixels, method=self.codec.encode)
        return self.quantise(params, codebook, vectors, rows, key, whole)

    def quantise(
        self,
        params: Any,
        codebook: Any,
        vectors: Float[Array, "b h w D"],
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
        whole: Any = None,
    ) -> Quantised:
        """What the quantiser makes of the encoder's vectors of some rows."""
        own, batch, learning = params.get("quantiser", {}), self.global_batch, self.codebook
        return self.quantiser.quantise(learning, own, codebook, vectors, rows, batch, key, whole)

    def pixel_metrics(self, l2: Float[Array, " b"]) -> dict[str, Float[Array, " b"]]:
        """Metrics of each image, from the mean squared error of its pixels in [0, 1]."""
        return {"l2": l2, "psnr": -10 * jnp.log10(jnp.maximum(l2, 1e-10))}

    def finish(self, values: ModelValues, aux: Any) -> tuple[ModelValues, dict[str, Array]]:
        """The values after the batch, and the quantiser's metrics of it."""
        if self.fixed_codes:
            return values, {"perplexity": use_metrics(aux, aux)["perplexity"]}
        params, before = values
        own, state, metrics = self.quantiser.finish(
            self.codebook, params.get("quantiser", {}), before, aux
        )
        return ModelValues(params | ({"quantiser": own} if own else {}), state), metrics

    def bundle_values(self, values: ModelValues) -> ModelValues:
        """All of them: parameters of the codec and the codebook."""
        return values

    def with_bundle_values(self, values: ModelValues, given: ModelValues) -> ModelValues:
        """`given`, since a bundle holds all values."""
        return given


def training_flops(config: CodecConfig, *, decoder_only: bool = False) -> float:
    """FLOPs of a forward and backward pass over one image: 6 a multiply-add.

    With `decoder_only` the encoder has no backward pass: 2 a multiply-add of it.
    """
    of_encoder = 2.0 if decoder_only else 6.0
    return of_encoder * config.encoder_multiply_adds + 6.0 * config.decoder_multiply_adds
