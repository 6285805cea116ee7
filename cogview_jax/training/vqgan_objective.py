"""Stage 1 with a discriminator: generator and discriminator are one state and one step.

Esser et al. 2021 (arXiv 2012.09841), section 3.1. Both turns see the reconstructions from before
the step, as in LlamaGen, and one gradient moves both: the generator's loss holds the discriminator
constant, and the other way round.

Legend: B rows of a batch, b rows of a part of it, h and w pixels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from cogview_jax.models.networks.discriminator import Discriminator, initial_state
from cogview_jax.models.networks.lpips import LpipsWeights
from cogview_jax.tokenizers.codecs.codec import Codec, normalise
from cogview_jax.training.adversarial import discriminator_turn, generator_turn
from cogview_jax.training.codec_loss import VQGANLoss
from cogview_jax.training.codec_objective import CodecObjective, ImageExample
from cogview_jax.training.objective import ModelValues, StepSums

#: The parameters that a bundle leaves out.
DISCRIMINATOR = "discriminator"


class VQGANState(NamedTuple):
    """State that no gradient reaches.

    codebook: the quantiser's. discriminator: what its norms keep. perceptual: the weights of LPIPS,
    or () without. step: how many steps were taken, an int32 scalar.
    """

    codebook: Any
    discriminator: Any
    perceptual: Any
    step: Any


class VQGANObjective(CodecObjective):
    """Pixels, LPIPS and the discriminator's judgement, plus the quantiser's loss.

    Parameters are those of `CodecObjective`, and under "discriminator" those of the discriminator.

    Args:
        codec: the encoder and decoder, of pixels in [-1, 1].
        global_batch: rows of a batch (B).
        loss: its terms, and how the codebook learns.
        perceptual: the weights of LPIPS, or None where their term has no weight.
    """

    def __init__(
        self, codec: Codec, *, global_batch: int, loss: VQGANLoss, perceptual: LpipsWeights | None
    ) -> None:
        fixed = loss.decoder_only
        super().__init__(codec, global_batch=global_batch, codebook=loss, fixed_codes=fixed)
        self.loss, self.perceptual = loss, perceptual
        self.discriminator = Discriminator(loss.discriminator, codec.dtype)
        size = codec.config.image_size
        loss.discriminator.grid(size, size)  # refuses images that are too small

    def init(self, key: Key[Array, ""]) -> ModelValues:
        """Boxed parameters, and the state before step 0."""
        params, codebook = super().init(key)
        size = self.codec.config.image_size
        state = initial_state(self.loss.discriminator)
        judging = self.discriminator.init(
            jax.random.fold_in(key, 1), jnp.zeros((1, size, size, 3)), state, False
        )
        perceptual = () if self.perceptual is None else jax.tree.map(jnp.asarray, self.perceptual)
        return ModelValues(
            params | {DISCRIMINATOR: judging["params"]},
            VQGANState(codebook, state, perceptual, jnp.int32(0)),
        )

    def sums(
        self,
        params: Any,
        model_state: VQGANState,
        batch: ImageExample,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
    ) -> StepSums:
        """Sums over images of both losses, metrics, and what moves the codebook and the norms.

        The adversarial terms are means over the rows given; see `VQGANLoss.check_accumulation`.
        """
        variables, images = {"params": params}, normalise(self.codec.config, batch.image)
        quantised = self.encode(params, model_state.codebook, batch.image, rows, key)
        features = self.codec.apply(variables, quantised.vectors, method=self.codec.features)
        decoded = self.codec.apply(variables, features, method=self.codec.pixels)

        def discriminate(x: Array, state: Any) -> tuple[Array, Any]:
            judging = {"params": params[DISCRIMINATOR]}
            return self.discriminator.apply(judging, x, state, True)

        generator = generator_turn(
            images,
            decoded,
            features,
            params["decoder_out"]["kernel"],
            None if self.perceptual is None else model_state.perceptual,
            discriminate,
            model_state.discriminator,
            model_state.step,
            self.loss.adversarial,
            self.codec.dtype,
        )
        # The generator's turn, too, has moved the running statistics; the original lets it.
        discriminator = discriminator_turn(
            images,
            decoded,
            discriminate,
            generator.state,
            model_state.step,
            self.loss.adversarial,
        )
        count = jnp.float32(len(images))
        error = jnp.mean(((decoded - images) / 2) ** 2, axis=(1, 2, 3))
        each = self.pixel_metrics(error) | quantised.metrics
        means = generator.terms | discriminator.terms
        return StepSums(
            count * (generator.loss + discriminator.loss) + jnp.sum(quantised.loss),
            {name: (jnp.sum(values), count) for name, values in each.items()}
            | {name: (count * value, count) for name, value in means.items()},
            (quantised.aux, discriminator.state),
        )

    def finish(
        self, values: ModelValues, aux: Any, key: Key[Array, ""]
    ) -> tuple[ModelValues, dict[str, Array]]:
        """The values after the batch, and the quantiser's metrics of it."""
        params, before = values
        (params, codebook), metrics = super().finish(
            ModelValues(params, before.codebook), aux[0], key
        )
        after = before._replace(codebook=codebook, discriminator=aux[1], step=before.step + 1)
        return ModelValues(params, after), metrics

    def bundle_values(self, values: ModelValues) -> ModelValues:
        """Without the discriminator and the weights of LPIPS."""
        kept = {name: value for name, value in values.params.items() if name != DISCRIMINATOR}
        return ModelValues(kept, values.model_state.codebook)

    def with_bundle_values(self, values: ModelValues, given: ModelValues) -> ModelValues:
        """`given` beside the discriminator of `values`."""
        judging = {DISCRIMINATOR: values.params[DISCRIMINATOR]}
        state = values.model_state._replace(codebook=given.model_state)
        return ModelValues(given.params | judging, state)
