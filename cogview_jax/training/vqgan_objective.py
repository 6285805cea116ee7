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
from cogview_jax.tokenizers.quantisers.quantiser import Quantised
from cogview_jax.training.adversarial import (
    Discriminate,
    discriminator_turn,
    generator_turn,
    turn_kernel_gradients,
)
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


class WholeBatch(NamedTuple):
    """What a part of a batch has to know of all of it, as sums over images.

    quantiser: see `Quantiser.batch_sums`. kernel_gradients: those of `turn_kernel_gradients`, or ()
    where the weight of the adversarial term does not adapt.
    """

    quantiser: Any
    kernel_gradients: tuple[Array, ...]


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
        whole: WholeBatch | None = None,
    ) -> StepSums:
        """Sums over images of both losses, metrics, and what moves the codebook and the norms.

        The terms are means over the rows given. See `VQGANLoss.check_accumulation` for what of them
        cannot be computed in parts.
        """
        images = normalise(self.codec.config, batch.image)
        known = None if whole is None else whole.quantiser
        quantised = self.encode(params, model_state.codebook, batch.image, rows, key, known)
        features, decoded = self._decoded(params, quantised)
        discriminate = self._discriminate(params)
        gradients: tuple[Array, ...] | None = None
        if whole is not None and self.loss.adversarial.adaptive:
            gradients = tuple(gradient / self.global_batch for gradient in whole.kernel_gradients)
        generator = generator_turn(
            images,
            decoded,
            features,
            params["decoder_out"]["kernel"],
            self._lpips(model_state),
            discriminate,
            model_state.discriminator,
            model_state.step,
            self.loss.adversarial,
            self.codec.dtype,
            gradients,
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

    def batch_sums(
        self,
        params: Any,
        model_state: VQGANState,
        batch: ImageExample,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
    ) -> WholeBatch:
        """What the quantiser and the adaptive weight have to know of the whole batch."""
        known = super().batch_sums(params, model_state.codebook, batch, rows, key)
        if not self.loss.adversarial.adaptive:
            return WholeBatch(known, ())
        quantised = self.encode(params, model_state.codebook, batch.image, rows, key)
        features, decoded = self._decoded(params, quantised)
        means = turn_kernel_gradients(
            normalise(self.codec.config, batch.image),
            decoded,
            features,
            params["decoder_out"]["kernel"],
            self._lpips(model_state),
            self._discriminate(params),
            model_state.discriminator,
            self.loss.adversarial,
            self.codec.dtype,
        )
        return WholeBatch(known, tuple(len(decoded) * mean for mean in means))

    def _decoded(self, params: Any, quantised: Quantised) -> tuple[Array, Array]:
        """What goes into the decoder's last layer, and what comes out."""
        variables = {"params": params}
        features = self.codec.apply(variables, quantised.vectors, method=self.codec.features)
        return features, self.codec.apply(variables, features, method=self.codec.pixels)

    def _discriminate(self, params: Any) -> Discriminate:
        def discriminate(x: Array, state: Any) -> tuple[Array, Any]:
            judging = {"params": params[DISCRIMINATOR]}
            return self.discriminator.apply(judging, x, state, True)

        return discriminate

    def _lpips(self, model_state: VQGANState) -> LpipsWeights | None:
        return None if self.perceptual is None else model_state.perceptual

    def finish(self, values: ModelValues, aux: Any) -> tuple[ModelValues, dict[str, Array]]:
        """The values after the batch, and the quantiser's metrics of it."""
        params, before = values
        (params, codebook), metrics = super().finish(ModelValues(params, before.codebook), aux[0])
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
