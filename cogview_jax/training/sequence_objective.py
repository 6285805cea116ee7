"""Stage 2: the likelihood of text and image tokens under one transformer."""

import jax
import jax.numpy as jnp

from cogview_jax.models.pivots import PIVOT_STREAM, draw_regions
from cogview_jax.models.sparse_attention import ThreeRegions
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.layout import Layout
from cogview_jax.training.objective import Terms


class SequenceObjective:
    """Weighted cross-entropy of the next token, over the rows of a layout.

    Batches hold the fields of `layout.Example`, each [B, T]. text_weight: what a text token weighs,
    an image token being 1 (the paper's pretraining has 1, its tutorial model 5).
    """

    def __init__(self, model: Transformer, layout: Layout, text_weight: float = 1.0):
        self.model = model
        self.layout = layout
        self.text_weight = text_weight
        self.tokens_per_row = layout.length - 1
        self.flops_per_row = training_flops(model, self.tokens_per_row)
        if model.config.sparse:
            _check_pivots(model.config.pivots, layout)

    def init(self, key: jax.Array) -> tuple[dict, tuple]:
        """Boxed parameters; no extras."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        return self.model.init(key, tokens, tokens)["params"], ()

    def weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The sum of the tokens' weights."""
        return jnp.sum(self._weights(batch))

    def terms(
        self, params: dict, extras: tuple, batch: dict[str, jax.Array], key: jax.Array
    ) -> Terms:
        """Sums of cross-entropies: weighted, and of text and image apart."""
        # The rows of a part tell it from the other parts of the batch: each has dropout of its own.
        rngs = (
            {"dropout": jax.random.fold_in(key, batch["row"][0])}
            if any(self.model.config.drop_rates)
            else {}
        )
        hidden = self.model.apply(
            {"params": params},
            batch["tokens"],
            batch["positions"],
            self._seen(batch, key),
            rngs=rngs,
        )
        logits = self.model.apply({"params": params}, hidden, method=self.model.logits)
        entropies = cross_entropy(logits, batch["targets"])
        text, image = batch["text_weights"], batch["image_weights"]
        return Terms(
            jnp.sum(entropies * self._weights(batch)),
            {
                "text_loss": (jnp.sum(entropies * text), jnp.sum(text)),
                "image_loss": (jnp.sum(entropies * image), jnp.sum(image)),
            },
            (),
        )

    def finish(self, extras: tuple, carry: tuple, key: jax.Array) -> tuple[tuple, dict]:
        """Nothing but parameters changes."""
        return extras, {}

    def _seen(self, batch: dict[str, jax.Array], key: jax.Array) -> ThreeRegions | None:
        """What sparse attention sees: pivots of their own for each step, row and layer."""
        if not self.model.config.sparse:
            return None
        key = jax.random.fold_in(key, PIVOT_STREAM)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["row"])
        return draw_regions(self.model.config, self.model.ids, batch["tokens"], keys)

    def _weights(self, batch: dict[str, jax.Array]) -> jax.Array:
        return self.text_weight * batch["text_weights"] + batch["image_weights"]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[target]: float32 [..., V], int32 [...] -> [...].

    The target's logit is picked by comparison rather than by indexing: the gradient of an index is
    a scatter into an array of the size of the logits, and this fuses with the softmax's.
    """
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
    picked = jnp.sum(jnp.where(chosen, shifted, 0), axis=-1)
    return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - picked


def training_flops(model: Transformer, tokens: int) -> float:
    """Floating-point operations of a forward and backward pass over one row of `tokens`.

    6 a matrix parameter and token (the tied head included, recomputation not), and 12 layers x
    width x tokens x keys for the two products of attention, counted without regard to causality
    (Chowdhery et al. 2022, appendix B): a query has all tokens as keys, or in sparse attention
    pivots and window.
    """
    config = model.config
    matrices = config.layers * (4 + 2 * config.mlp_ratio) * config.width**2
    matrices += model.vocabulary * config.width
    sparse = config.pivots + config.window * config.window_blocks
    keys = min(tokens, sparse) if config.sparse else tokens
    return 6.0 * matrices * tokens + 12.0 * config.layers * config.width * tokens * keys


def _check_pivots(pivots: int, layout: Layout) -> None:
    """Refuses fewer pivots than a row has text and commands, all of which are pivots."""
    image = sum(region.length for region in layout.images)
    if pivots < layout.length - image:
        raise InputError(
            f"model pivots {pivots}: all text and commands are pivots, and the layout"
            f" {layout.task} has {layout.length - image} of them; expected at least that many"
        )
