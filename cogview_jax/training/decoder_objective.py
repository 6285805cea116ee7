"""Stage 1 for the decoder alone: the codes of all images stay what they are.

Token stores and transformers that were made with these codes stay of use, while the decoder learns
one's own kind of images. The autoencoder of Stable Diffusion was finetuned in this way (`ft-EMA`
and `ft-MSE`).
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cogview_jax.training.codec_objective import CodecObjective, ImageExample
from cogview_jax.training.objective import ModelValues, StepSums


class Frozen(NamedTuple):
    """State that no gradient reaches.

    params: the parameters of the encoder and the quantiser. model_state: that of the objective.
    """

    params: Any
    model_state: Any


class DecoderObjective:
    """Another objective of images, whose parameters before the codes are no longer trained.

    They are a part of the model state and not of the parameters. So nothing is differentiated by
    them, and the optimizer has neither moments nor weight decay for them.

    Args:
        inner: the objective; its `fixed_codes` is True.
    """

    def __init__(self, inner: CodecObjective) -> None:
        assert inner.fixed_codes
        self.inner = inner
        self.tokens_per_row, self.flops_per_row = inner.tokens_per_row, inner.flops_per_row

    def init(self, key: Key[Array, ""]) -> ModelValues:
        """The values of the other objective."""
        return self._split(self.inner.init(key))

    def normalizer(self, batch: ImageExample) -> Float[Array, ""]:
        """The number of images."""
        return self.inner.normalizer(batch)

    def sums(
        self,
        params: Any,
        model_state: Frozen,
        batch: ImageExample,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
        whole: Any = None,
    ) -> StepSums:
        """The sums of the other objective."""
        values = self._joined(ModelValues(params, model_state))
        return self.inner.sums(*values, batch, rows, key, whole)

    def batch_sums(
        self,
        params: Any,
        model_state: Frozen,
        batch: ImageExample,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
    ) -> Any:
        """Those of the other objective."""
        values = self._joined(ModelValues(params, model_state))
        return self.inner.batch_sums(*values, batch, rows, key)

    def finish(self, values: ModelValues, aux: Any) -> tuple[ModelValues, dict[str, jax.Array]]:
        """The values after the batch, and the metrics of the other objective."""
        after, metrics = self.inner.finish(self._joined(values), aux)
        return self._split(after), metrics

    def bundle_values(self, values: ModelValues) -> ModelValues:
        """What the other objective's bundle holds, encoder and quantiser included."""
        return self.inner.bundle_values(self._joined(values))

    def with_bundle_values(self, values: ModelValues, given: ModelValues) -> ModelValues:
        """`values` with those of a bundle."""
        return self._split(self.inner.with_bundle_values(self._joined(values), given))

    def _split(self, values: ModelValues) -> ModelValues:
        """The values as this objective has them."""
        before_codes = {*self.inner.codec.config.encoder_parameters, "quantiser"}
        frozen = {name: tree for name, tree in values.params.items() if name in before_codes}
        rest = {name: tree for name, tree in values.params.items() if name not in before_codes}
        return ModelValues(rest, Frozen(frozen, values.model_state))

    def _joined(self, values: ModelValues) -> ModelValues:
        """The values as the other objective has them."""
        frozen = values.model_state
        return ModelValues(values.params | frozen.params, frozen.model_state)
