"""CogView's transformer: embeddings, a stack of blocks, and a head tied to the embeddings.

The stack has two forms, which compute the same. For training, `Transformer` scans over parameters
that are stacked by layer, which compiles in a time that does not grow with the layers, and which
can rematerialise. A trained model has one tree of parameters a layer (`models.layer_params`):
`cached_forward` unrolls the layers with a key/value cache for sampling and reads each weight once,
and `whole_forward` runs one layer after the other over whole sequences.

Legend: B batch, T positions, S slots of a cache, D width, V vocabulary, L layers, P pivots.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cogview_jax.models.activation_max import ACTIVATION_MAX
from cogview_jax.models.attention import AttentionPattern, KeyValues, causal_mask
from cogview_jax.models.block import Block, make_norm
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.dropout import dropout
from cogview_jax.models.implementation import Implementation, choose_implementation
from cogview_jax.models.kernels.block_attention import CausalBlocks
from cogview_jax.models.kernels.cached_attention import CacheSpan
from cogview_jax.models.kernels.fused_attention import Causal
from cogview_jax.models.kernels.token_step import ROWS, token_step
from cogview_jax.models.linear import matmul
from cogview_jax.models.pivots import draw_regions
from cogview_jax.models.quantized_cache import QuantizedSlots
from cogview_jax.models.remat import checkpoint_policy
from cogview_jax.models.sparse_attention import (
    CachedRegions,
    PivotCache,
    ThreeRegions,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import FLOAT32, Policy
from cogview_jax.runtime.sharding import constrain
from cogview_jax.tokenizers.vocabulary import Vocabulary

#: The key/value cache of a model, one entry a layer.
Cache = tuple[KeyValues | PivotCache, ...]


class Transformer(nn.Module):
    """A left-to-right transformer over one vocabulary.

    Attributes:
        config: the sizes and switches.
        vocab_size: the number of ids V.
        positions: the number of learned positions.
        policy: the types of the arithmetic; parameters are float32.
        vocabulary: the meaning of the ids. Only sparse attention needs it, to tell text from image.
        implementation: the programs that run; None takes those that are fastest on jax's first
            device.
    """

    config: TransformerConfig
    vocab_size: int
    positions: int
    policy: Policy = FLOAT32
    vocabulary: Vocabulary | None = None
    implementation: Implementation | None = None

    def __post_init__(self):
        if self.implementation is None:
            # After the next line the module is frozen and refuses new values of its fields.
            object.__setattr__(
                self, "implementation", choose_implementation(self.config, self.policy)
            )
        super().__post_init__()

    @property
    def programs(self) -> Implementation:
        """The field `implementation`, which is never None after the module is built."""
        assert self.implementation is not None
        return self.implementation

    def setup(self):
        """Creates the embedding tables, the scanned stack and the final norm."""
        config = self.config
        normal = nn.initializers.normal(config.init_std)

        def table(name: str, rows: int, axis: str) -> Any:
            init = nn.with_logical_partitioning(normal, (axis, "embed"))
            values: Any = self.param(name, init, (rows, config.width), jnp.float32)
            return values

        self.word_table = table("word_embedding", self.vocab_size, "vocabulary")
        self.position_table = table("position_embedding", self.positions, "positions")
        layer = ScannedBlock
        if config.remat != "none":
            layer = nn.remat(layer, prevent_cse=False, policy=checkpoint_policy(config.remat))
        self.blocks = nn.scan(
            layer,
            variable_axes={"params": 0, ACTIVATION_MAX: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=0 if config.sparse else nn.broadcast,
            length=config.layers,
            unroll=config.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, self.policy, self.programs.platform)
        self.final_norm = make_norm(config, self.policy)

    def embed(
        self, tokens: Int[Array | np.ndarray, "B T"], positions: Int[Array | np.ndarray, "B T"]
    ) -> Float[Array, "B T D"]:
        """Adds the word and the position embeddings.

        Only the share a = `config.embedding_gradient` of the gradient reaches the word embeddings,
        which are x a + stop_gradient(x) (1 - a) (arXiv 2105.13290, section 2.4).
        """
        # Rows are looked up in tables of the whole width, as FSDP gathers every weight that it
        # uses. Tables that are split by width would give activations that are split by width, and
        # the devices would have to exchange these for rows of the batch.
        word_embeddings = constrain(self.word_table, "vocabulary", "width")[tokens]
        position_embeddings = constrain(self.position_table, "positions", "width")[positions]
        share = self.config.embedding_gradient
        if share < 1:
            fixed = jax.lax.stop_gradient(word_embeddings)
            word_embeddings = word_embeddings * share + fixed * (1 - share)
        x = jnp.asarray(word_embeddings + position_embeddings, self.policy.compute)
        if self.has_rng("dropout"):
            x = dropout(x, self.config.dropout, self.make_rng("dropout"))
        return constrain(x, "batch", "sequence", "width")

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "B T"],
        positions: Int[Array | np.ndarray, "B T"],
        pattern: AttentionPattern | None = None,
    ) -> Float[Array, "B T D"]:
        """Computes the hidden states after the final norm.

        Padding on the right needs no mask, because no earlier query sees it. Dropout applies if a
        "dropout" key is given.

        Args:
            tokens: the ids.
            positions: the positions of the tokens.
            pattern: which keys each query sees. For dense attention it is a bool mask that is
                broadcast to [B, N, T, T], and for sparse attention it is the regions of all layers.
                None takes `default_pattern`.
        """
        chosen = self.default_pattern(tokens) if pattern is None else pattern
        x, _ = self.blocks(self.embed(tokens, positions), chosen)
        return self.final_norm(x)

    def default_pattern(
        self, tokens: Int[Array | np.ndarray, "B T"]
    ) -> jax.Array | ThreeRegions | Causal | CausalBlocks:
        """Returns the attention pattern for `tokens` if the caller gives none.

        In dense attention a query sees its own position and those before it. In sparse attention
        the same tokens always get the same regions (`draw_regions`). The pattern asks for the
        program of the implementation, but a mask stands where scores are recorded, and blocks where
        a fused kernel would have to drop weights.
        """
        if self.config.sparse:
            return draw_regions(self.config, self.vocabulary, tokens)
        dropping = self.config.weight_dropout > 0 and self.has_rng("dropout")
        if self.programs.attention == "xla" or self.is_mutable_collection(ACTIVATION_MAX):
            return causal_mask(tokens.shape[1])
        if self.programs.fused and not dropping:
            return Causal(self.programs.attention, self.programs.interpret)
        return CausalBlocks()

    def logits(
        self, hidden: Float[Array | np.ndarray, "*B D"], first: int = 0, last: int | None = None
    ) -> Float[Array, "*B V"]:
        """Computes the float32 logits of the ids first..last - 1, by default of all ids."""
        table = self.word_table[first:last].astype(self.policy.compute)
        return matmul(hidden, table.T, jnp.float32, self.programs.platform)

    def normalise(
        self,
        x: Float[Array | np.ndarray, "B T D"],
        valid_mask: Bool[Array | np.ndarray, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Applies the final norm alone; for `valid_mask` see `LayerNorm`."""
        return self.final_norm(x, valid_mask)


class ScannedBlock(nn.Module):
    """A `Block` with the signature that `nn.scan` asks for: (carry, input) -> (carry, output)."""

    config: TransformerConfig
    policy: Policy
    platform: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], pattern: AttentionPattern
    ) -> tuple[Float[Array, "B T D"], None]:
        """Applies the layer to the main branch; there is no output beside it."""
        block = Block(self.config, self.policy, self.platform, name="block")
        return block(x, pattern)[0], None


def whole_forward(
    model: Transformer,
    params: Mapping[str, Any],
    tokens: Int[Array | np.ndarray, "B T"],
    positions: Int[Array | np.ndarray, "B T"],
    valid_mask: Bool[Array | np.ndarray, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Computes the hidden states of whole sequences, as `model` does, from one tree a layer.

    One layer is compiled and then run for every layer, so compilation takes as long as for a
    scanned stack. There is no dropout.

    Args:
        model: the transformer of `params`.
        params: the parameters from `unstack_layers` or `unstack_arrays`.
        tokens: the ids.
        positions: the positions of the tokens.
        valid_mask: see `LayerNorm`. With a mask that is all True, no sequence changes another.
    """
    outside = without_blocks(params)
    x, pattern = _embed(outside, tokens, positions, model=model)
    for i, layer in enumerate(params["blocks"]):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], pattern) if model.config.sparse else pattern
        x = _apply_block(layer, x, own, valid_mask, model=model)
    return _normalise(outside, x, valid_mask, model=model)


def without_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters outside the stack: the embedding tables and the final norm."""
    return {name: value for name, value in params.items() if name != "blocks"}


@functools.partial(jax.jit, static_argnames="model")
def _embed(
    params: Mapping[str, Any],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    model: Transformer,
) -> tuple[Float[Array, "B T D"], AttentionPattern]:
    variables = {"params": params}
    pattern: Any = model.apply(variables, tokens, method=model.default_pattern)
    x: Any = model.apply(variables, tokens, positions, method=model.embed)
    return x, pattern


@functools.partial(jax.jit, static_argnames="model")
def _apply_block(
    params: Mapping[str, Any],
    x: Float[Array, "B T D"],
    pattern: AttentionPattern,
    valid_mask: Bool[Array, "B T"] | None,
    *,
    model: Transformer,
) -> Float[Array, "B T D"]:
    block = Block(model.config, model.policy, model.programs.platform)
    return block.apply({"params": params}, x, pattern, None, 0, valid_mask)[0]


@functools.partial(jax.jit, static_argnames=("model", "first", "last"))
def logits_of(
    params: Mapping[str, Any],
    hidden: Float[Array | np.ndarray, "*B D"],
    *,
    model: Transformer,
    first: int = 0,
    last: int | None = None,
) -> Float[Array, "*B V"]:
    """Computes `Transformer.logits` of hidden states; `params` come from `without_blocks`."""
    logits: Any = model.apply({"params": params}, hidden, first, last, method=model.logits)
    return logits


@functools.partial(jax.jit, static_argnames="model")
def _normalise(
    params: Mapping[str, Any],
    x: Float[Array, "B T D"],
    valid_mask: Bool[Array, "B T"] | None,
    *,
    model: Transformer,
) -> Float[Array, "B T D"]:
    hidden: Any = model.apply({"params": params}, x, valid_mask, method=model.normalise)
    return hidden


def empty_cache(
    model: Transformer,
    batch: int,
    length: int,
    pivots: Int[Array | np.ndarray, "L B P"] | None = None,
) -> Cache:
    """Returns an empty key/value cache.

    Args:
        model: the transformer that will fill it.
        batch: the number of rows B.
        length: the number of slots S.
        pivots: the slots that will hold pivots, in ascending order, for a model with sparse
            attention. A missing pivot has a slot beyond the end of the cache.

    Raises:
        InputError: the model has sparse attention and there are no pivots.
    """
    config, dtype = model.config, model.policy.compute

    def empty(slots: int) -> KeyValues:
        shape = (batch, config.heads, slots, config.head_width)
        if model.programs.int8_cache:
            return KeyValues(QuantizedSlots.empty(shape), QuantizedSlots.empty(shape))
        return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    if not config.sparse:
        return tuple(empty(length) for _ in range(config.layers))
    if pivots is None:
        raise InputError("a cache of sparse attention needs pivots; this way of decoding has none")
    return tuple(PivotCache(*empty(length), layer, *empty(layer.shape[1])) for layer in pivots)


def cached_forward(
    model: Transformer,
    params: Mapping[str, Any],
    tokens: Int[Array | np.ndarray, "B T"],
    positions: Int[Array | np.ndarray, "B T"],
    cache_mask: Bool[Array | np.ndarray, "B S"],
    cache: Sequence[KeyValues | PivotCache],
    index: jax.Array | int,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Continues cached sequences by T tokens, which fill the slots index..index + T - 1.

    Args:
        model: the transformer of `params`.
        params: the parameters from `unstack_layers`.
        tokens: the ids of the new tokens.
        positions: the positions of the new tokens.
        cache_mask: which slots hold tokens that a query may see, the new tokens among them; this
            function adds causality. With sparse attention, and if T is 1, the mask has to be True
            from the first token of each row on.
        cache: a cache from `empty_cache` or an earlier call, one entry a layer.
        index: the number of slots that have been written before; int32 [B] where rows stand at
            different slots.

    Returns:
        The hidden states of the new tokens, and the cache with these tokens.
    """
    length = cache[0].keys.shape[2]
    config, programs = model.config, model.programs
    decoding = programs.decoding if tokens.shape[1] == 1 else "layers"
    queries = jnp.asarray(index)[..., None] + jnp.arange(tokens.shape[1])  # [T], or [B, T]
    pattern: AttentionPattern
    if config.sparse:
        starts = jnp.argmax(cache_mask, axis=1)
        pattern = CachedRegions(index, starts, config.window, config.window_blocks)
    elif decoding != "layers":
        pattern = CacheSpan(jnp.argmax(cache_mask, axis=1), index, programs.interpret)
    else:
        slots = jnp.arange(length)
        seen = slots <= queries[..., None]  # [T, S], or [B, T, S]
        seen = seen[:, None] if jnp.ndim(index) else seen
        pattern = seen & cache_mask[:, None, None, :]
    x: Any = model.apply({"params": params}, tokens, positions, method=model.embed)
    # With this mask, the hidden states of a row depend on its own tokens alone.
    if jnp.ndim(index):
        valid_mask = jnp.take_along_axis(jnp.asarray(cache_mask), queries, axis=1)
    else:
        valid_mask = jax.lax.dynamic_slice_in_dim(cache_mask, index, tokens.shape[1], axis=1)
    blocks = params["blocks"]
    written: Cache
    if isinstance(pattern, CacheSpan) and decoding == "token_step" and len(x) <= ROWS:
        dense = [KeyValues(layer.keys, layer.values) for layer in cache]
        x, written = token_step(config, model.policy, blocks, x, pattern, dense)
    else:
        x, written = _apply_blocks(model, blocks, x, pattern, cache, index, valid_mask)
    hidden: Any = model.apply({"params": params}, x, valid_mask, method=model.normalise)
    return hidden, written


def _apply_blocks(
    model: Transformer,
    blocks: Sequence[Mapping[str, Any]],
    x: Float[Array, "B T D"],
    pattern: AttentionPattern,
    cache: Sequence[KeyValues | PivotCache],
    index: jax.Array | int,
    valid_mask: Bool[Array, "B T"],
) -> tuple[Float[Array, "B T D"], Cache]:
    """Applies all blocks, one after the other; see `cached_forward` and `Block`."""
    block = Block(model.config, model.policy, model.programs.platform)
    written: list[Any] = []
    for layer, before in zip(blocks, cache, strict=True):
        x, after = block.apply({"params": layer}, x, pattern, before, index, valid_mask)
        written.append(after)
    return x, tuple(written)
