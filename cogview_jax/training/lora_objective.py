"""The loss of sequences as a function of low-rank adapters; the model itself stays as it is."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from cogview_jax.models.lora import LoRAConfig, adapter_shapes, initial_adapters, with_adapters
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.random_key import random_key
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.layout import Layout
from cogview_jax.training.objective import ModelValues
from cogview_jax.training.sequence_objective import SequenceObjective, training_flops


class LoRAObjective(SequenceObjective):
    """A `SequenceObjective` whose parameters are the adapters of `models.lora` alone.

    The parameters of the model are the model state. No gradient reaches them and the optimizer does
    not know of them, so neither gradients nor moments of their size are ever in memory; the average
    of the parameters, where a run keeps one, is that of the adapters.
    """

    def __init__(
        self, model: Transformer, layout: Layout, text_weight: float, lora: LoRAConfig
    ) -> None:
        """Adds adapters to an objective.

        Args:
            model, layout, text_weight: see `SequenceObjective`.
            lora: which layers have an adapter, and of what rank.
        """
        super().__init__(model, layout, text_weight)
        self.lora = lora
        self._shapes = jax.eval_shape(super().init, random_key(0)).params
        adapters = jax.tree.leaves(adapter_shapes(unbox(self._shapes), lora))
        numbers = sum(math.prod(leaf.shape) for leaf in adapters)
        self.flops_per_row = training_flops(model, self.tokens_per_row, frozen=True)
        self.flops_per_row += 6.0 * numbers * self.tokens_per_row

    def init(self, key: Key[Array, ""]) -> ModelValues:
        """Boxed adapters, and zeros in the place of the frozen parameters, which a bundle holds."""
        dtype = jnp.dtype(self.lora.base_dtype)
        base = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), self._shapes)
        return ModelValues(initial_adapters(key, unbox(self._shapes), self.lora), base)

    def model_params(self, values: ModelValues) -> Any:
        """The frozen parameters with the adapters beside them."""
        return with_adapters(values.model_state, values.params, self.lora.scale)
