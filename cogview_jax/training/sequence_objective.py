"""Stage 2: the likelihood of text and image tokens (arXiv 2105.13290, section 3.2).

Legend: B rows of a batch, b rows of a part of it, T positions, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cogview_jax.models.pivots import PIVOT_STREAM, draw_regions
from cogview_jax.models.sparse_attention import ThreeRegions
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.layout import Example, Layout
from cogview_jax.training.cross_entropy import LOGITS, weighted_cross_entropy
from cogview_jax.training.objective import ModelValues, StepSums


class SequenceObjective:
    """Weighted cross-entropy of the next token, over the rows of a layout.

    Args:
        model: the transformer.
        layout: of the rows.
        text_weight: weight of a text token in the loss; an image token has 1. The paper's
            pretraining has 1, the tutorial model of its release 5.
    """

    def __init__(self, model: Transformer, layout: Layout, text_weight: float = 1.0) -> None:
        self.model = model
        self.layout = layout
        self.text_weight = text_weight
        self.tokens_per_row = layout.length - 1
        self.flops_per_row = training_flops(model, self.tokens_per_row)
        if model.config.sparse:
            _check_pivots(model.config.pivots, layout)

    def init(self, key: Key[Array, ""]) -> ModelValues:
        """Boxed parameters; there is no model state."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        return ModelValues(self.model.init(key, tokens, tokens)["params"], ())

    def normalizer(self, batch: Example) -> Float[Array, ""]:
        """The sum of the weights of all tokens."""
        return jnp.sum(self._weights(batch))

    def sums(
        self,
        params: Any,
        model_state: Any,
        batch: Example,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
    ) -> StepSums:
        """Sums of cross-entropies: weighted, and those of text and of image tokens."""
        # The number of its first row gives each part of a batch a dropout key of its own.
        config = self.model.config
        dropping = config.dropout > 0 or config.weight_dropout > 0
        rngs = {"dropout": jax.random.fold_in(key, rows[0])} if dropping else {}
        params = self.model_params(ModelValues(params, model_state))
        loss, entropies = self._entropies(params, batch, self._attention(batch, (rows, key)), rngs)
        text, image = batch.text_weights, batch.image_weights
        return StepSums(
            loss,
            {
                "text_loss": (jnp.sum(entropies * text), jnp.sum(text)),
                "image_loss": (jnp.sum(entropies * image), jnp.sum(image)),
            },
            (),
        )

    def row_sums(self, params: Any, batch: Example) -> dict[str, tuple[Array, Array]]:
        """For each loss of a step, the sum of each row and its weight [b], without any randomness.

        Nothing is dropped, and the pivots of sparse attention are those of a bundle (see
        `draw_regions`), so that the sums of a row depend on the row alone.
        """
        attention = self._attention(batch, None)
        _, entropies = self._entropies(params, batch, attention, {})
        weights = {
            "loss": self._weights(batch),
            "text_loss": batch.text_weights,
            "image_loss": batch.image_weights,
        }
        return {
            name: (jnp.sum(entropies * weight, axis=1), jnp.sum(weight, axis=1))
            for name, weight in weights.items()
        }

    def finish(self, values: ModelValues, aux: tuple[()]) -> tuple[ModelValues, dict[str, Array]]:
        """There is no model state, and there are no further metrics."""
        return values, {}

    def model_params(self, values: ModelValues) -> Any:
        """The parameters of the transformer, which `sums` computes with and `row_sums` takes."""
        return values.params

    def bundle_values(self, values: ModelValues) -> ModelValues:
        """All of them: the parameters of the transformer."""
        return values

    def with_bundle_values(self, values: ModelValues, given: ModelValues) -> ModelValues:
        """`given`, since a bundle holds all values."""
        return given

    def _attention(
        self,
        batch: Example,
        random: tuple[Int[Array | np.ndarray, " b"], Key[Array, ""]] | None,
    ) -> ThreeRegions | None:
        """The pattern of sparse attention, whose pivots differ by step, row and layer.

        random: the numbers of the rows and the key of the step; None for the pivots of a bundle.
        """
        if not self.model.config.sparse:
            return None
        keys = None
        if random is not None:
            key = jax.random.fold_in(random[1], PIVOT_STREAM)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, random[0])
        return draw_regions(self.model.config, self.model.vocabulary, batch.tokens, keys)

    def _entropies(
        self,
        params: Any,
        batch: Example,
        attention: ThreeRegions | None,
        rngs: dict[str, Key[Array, ""]],
    ) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
        """The weighted sum of the cross-entropies of all targets, and each of them."""
        apply: Callable[..., Any] = self.model.apply
        hidden = apply({"params": params}, batch.tokens, batch.positions, attention, rngs=rngs)
        return weighted_cross_entropy(
            hidden,
            params["word_embedding"].astype(self.model.policy.compute),
            batch.targets,
            self._weights(batch),
            platform=self.model.programs.platform,
            # Parts of rows that several devices share would be exchanged between them.
            logits=LOGITS if jax.sharding.get_abstract_mesh().size <= 1 else None,
        )

    def _weights(self, batch: Example) -> Float[Array | np.ndarray, "B T"]:
        return self.text_weight * batch.text_weights + batch.image_weights


def training_flops(model: Transformer, tokens: int, *, frozen: bool = False) -> float:
    """FLOPs of a forward and backward pass over one row of `tokens`.

    6 a matrix parameter and token (with the tied head, without recomputation), and 12 x layers x
    width x tokens x keys for the two products of attention (Chowdhery et al. 2022, appendix B). The
    causal mask is not considered: a query has all tokens as keys, or in sparse attention the pivots
    and its window. Matrices that are `frozen` have no gradient: 4 a parameter and token.
    """
    config = model.config
    matrices = config.layers * (4 + 2 * config.mlp_ratio) * config.width**2
    matrices += model.vocab_size * config.width
    sparse = config.pivots + config.window * config.window_blocks
    keys = min(tokens, sparse) if config.sparse else tokens
    return (
        4.0 if frozen else 6.0
    ) * matrices * tokens + 12.0 * config.layers * config.width * tokens * keys


def _check_pivots(pivots: int, layout: Layout) -> None:
    """InputError where a row has more text and command tokens, all of them pivots, than pivots."""
    image = sum(region.length for region in layout.images)
    if pivots < layout.length - image:
        raise InputError(
            f"model pivots {pivots}: all text and commands are pivots, and the layout"
            f" {layout.task} has {layout.length - image} of them; expected at least that many"
        )
