"""CogView's transformer: embeddings, a stack of blocks, and a head tied to the embeddings.

The stack has two forms of one computation: scanned over parameters stacked by layer, which compiles
in constant time and rematerialises, for training; and over one set of parameters a layer, for all
that is done with a trained model: unrolled with a key/value cache, which streams each weight once,
for sampling (see `cached_forward`), and layer after layer for whole sequences (`whole_forward`).

Legend: B batch, T positions, D width, V vocabulary.
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
from cogview_jax.models.implementation import Implementation, choose
from cogview_jax.models.kernels.cached_attention import CacheSpan
from cogview_jax.models.kernels.fused_attention import Causal
from cogview_jax.models.kernels.token_step import ROWS, token_step
from cogview_jax.models.linear import product
from cogview_jax.models.pivots import draw_regions
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

#: What is kept of a sequence, one entry a layer.
Cache = tuple[KeyValues | PivotCache, ...]


class Transformer(nn.Module):
    """Left-to-right transformer over one vocabulary.

    vocab_size: number of ids V. positions: how many positions were learned. policy: the types of
    the arithmetic; parameters are float32. vocabulary: what the ids mean; only sparse attention
    needs it, to tell text from image. implementation: which programs run; without one, those that
    are fastest on jax's first device.
    """

    config: TransformerConfig
    vocab_size: int
    positions: int
    policy: Policy = FLOAT32
    vocabulary: Vocabulary | None = None
    implementation: Implementation | None = None

    def __post_init__(self):
        if self.implementation is None:
            # A module refuses new values of its fields from the next line on.
            object.__setattr__(self, "implementation", choose(self.config, self.policy))
        super().__post_init__()

    @property
    def programs(self) -> Implementation:
        """The field `implementation`, which is set from the start."""
        assert self.implementation is not None
        return self.implementation

    def setup(self):
        """Tables, the scanned stack, and the final norm."""
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
        """Word plus position embeddings: int32 [B, T] twice -> [B, T, D].

        Of the word embeddings' gradient only the share a passes: x a + stop_gradient(x) (1 - a)
        (arXiv 2105.13290, section 2.4).
        """
        # Rows are looked up in tables of whole width, as FSDP gathers every weight it uses: out of
        # tables split by width would come activations that must be exchanged for rows of the batch.
        words = constrain(self.word_table, "vocabulary", "width")[tokens]
        places = constrain(self.position_table, "positions", "width")[positions]
        share = self.config.embedding_gradient
        if share < 1:
            words = words * share + jax.lax.stop_gradient(words) * (1 - share)
        x = (words + places).astype(self.policy.compute)
        if self.has_rng("dropout"):
            x = dropout(x, self.config.dropout, self.make_rng("dropout"))
        return constrain(x, "batch", "sequence", "width")

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "B T"],
        positions: Int[Array | np.ndarray, "B T"],
        pattern: AttentionPattern | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, [B, T, D]; dropout where a "dropout" key is given.

        Padding on the right needs no mask: causality hides it.

        Args:
            tokens: int32 [B, T].
            positions: int32 [B, T].
            pattern: which keys each query sees. For dense attention a mask, bool, broadcast to
                [B, N, T, T]; for sparse attention the regions of every layer. Without one, see
                `default_pattern`.
        """
        chosen = self.default_pattern(tokens) if pattern is None else pattern
        x, _ = self.blocks(self.embed(tokens, positions), chosen)
        return self.final_norm(x)

    def default_pattern(
        self, tokens: Int[Array | np.ndarray, "B T"]
    ) -> jax.Array | ThreeRegions | Causal:
        """Which keys each query of int32 [B, T] sees unless the caller says.

        In dense attention these are its own and those before it, in sparse attention always the
        same regions (`draw_regions`). The fused kernel is asked for unless attention drops weights
        or its scores are recorded.
        """
        if self.config.sparse:
            return draw_regions(self.config, self.vocabulary, tokens)
        dropping = self.config.drop_rates[1] > 0 and self.has_rng("dropout")
        recording = self.is_mutable_collection(ACTIVATION_MAX)
        if self.programs.attention == "cudnn" and not dropping and not recording:
            return Causal(self.programs.interpret)
        return causal_mask(tokens.shape[1])

    def logits(
        self, hidden: Float[Array | np.ndarray, "*B D"], first: int = 0, last: int | None = None
    ) -> Float[Array, "*B V"]:
        """Scores of the ids [first, last), or all: [..., D] -> float32 [..., last - first]."""
        table = self.word_table[first:last].astype(self.policy.compute)
        return product(hidden, table.T, jnp.float32, self.programs.platform)

    def normalise(
        self,
        x: Float[Array | np.ndarray, "B T D"],
        valid_mask: Bool[Array | np.ndarray, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The final norm alone: [B, T, D] -> [B, T, D]; valid_mask: see `LayerNorm`."""
        return self.final_norm(x, valid_mask)


class ScannedBlock(nn.Module):
    """A block in the form `nn.scan` asks for: (carry, pattern) -> (carry, nothing)."""

    config: TransformerConfig
    policy: Policy
    platform: str

    @nn.compact
    def __call__(self, x: jax.Array, pattern: AttentionPattern) -> tuple[jax.Array, None]:
        """x [B, T, D] through the layer."""
        block = Block(self.config, self.policy, self.platform, name="block")
        return block(x, pattern)[0], None


def whole_forward(
    model: Transformer,
    params: Mapping[str, Any],
    tokens: Int[Array | np.ndarray, "B T"],
    positions: Int[Array | np.ndarray, "B T"],
    valid_mask: Bool[Array | np.ndarray, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """What `model` computes of whole sequences, from parameters of `layered`: [B, T, D].

    One layer is compiled and run again and again, so compiling takes as long as for one that is
    scanned. Without dropout.

    Args:
        model: the transformer of `params`.
        params: from `unstack_layers` or `layered`.
        tokens: int32 [B, T].
        positions: int32 [B, T].
        valid_mask: bool [B, T], see `LayerNorm`; all True where no sequence may change another.
    """
    outside = without_blocks(params)
    x, pattern = _embedded(outside, tokens, positions, model=model)
    for i, layer in enumerate(params["blocks"]):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], pattern) if model.config.sparse else pattern
        x = _through_block(layer, x, own, valid_mask, model=model)
    return _normalised(outside, x, valid_mask, model=model)


def without_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters around the stack: the tables and the final norm."""
    return {name: value for name, value in params.items() if name != "blocks"}


@functools.partial(jax.jit, static_argnames="model")
def _embedded(params: Any, tokens: jax.Array, positions: jax.Array, *, model: Transformer) -> tuple:
    variables = {"params": params}
    pattern = model.apply(variables, tokens, method=model.default_pattern)
    return model.apply(variables, tokens, positions, method=model.embed), pattern


@functools.partial(jax.jit, static_argnames="model")
def _through_block(
    params: Any, x: jax.Array, pattern: Any, valid_mask: jax.Array | None, *, model: Transformer
) -> jax.Array:
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
    """`Transformer.logits` of hidden states [..., D], from what `without_blocks` gives."""
    logits: Any = model.apply({"params": params}, hidden, first, last, method=model.logits)
    return logits


@functools.partial(jax.jit, static_argnames="model")
def _normalised(
    params: Any, x: jax.Array, valid_mask: jax.Array | None, *, model: Transformer
) -> jax.Array:
    normal: Any = model.apply({"params": params}, x, valid_mask, method=model.normalise)
    return normal


def empty_cache(
    model: Transformer,
    batch: int,
    length: int,
    pivots: Int[Array | np.ndarray, "L B P"] | None = None,
) -> Cache:
    """A key/value cache for `length` positions, one entry a layer.

    pivots: int32 [L, B, P], of a model with sparse attention: the slots of the cache that will hold
    pivots, ascending, and slots beyond it for those that are missing. Raises InputError where such
    a model gets none.
    """
    config, dtype = model.config, model.policy.compute

    def empty(slots: int) -> KeyValues:
        shape = (batch, config.heads, slots, config.head_width)
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
    """Continues cached sequences by T tokens at cache slots index..index + T - 1.

    Args:
        model: the transformer of `params`.
        params: from `unstack_layers`.
        tokens: int32 [B, T].
        positions: int32 [B, T].
        cache_mask: bool [B, S], which slots of the cache hold tokens that a query may see, those of
            `tokens` included; causality is added here. With sparse attention, and where T is 1,
            it is True from each row's first token on.
        cache: of S slots, one entry a layer (`empty_cache`).
        index: how many slots were written before.

    Returns:
        Hidden states [B, T, D], and the cache with the tokens.
    """
    length = cache[0].keys.shape[2]
    config, programs = model.config, model.programs
    decoding = programs.decoding if tokens.shape[1] == 1 else "layers"
    pattern: AttentionPattern
    if config.sparse:
        starts = jnp.argmax(cache_mask, axis=1)
        pattern = CachedRegions(index, starts, config.window, config.window_blocks)
    elif decoding != "layers":
        pattern = CacheSpan(jnp.argmax(cache_mask, axis=1), index, programs.interpret)
    else:
        slots, queries = jnp.arange(length), index + jnp.arange(tokens.shape[1])
        pattern = (slots[None, :] <= queries[:, None]) & cache_mask[:, None, None, :]
    x: Any = model.apply({"params": params}, tokens, positions, method=model.embed)
    # What a sequence of the batch becomes depends on itself alone, padding apart.
    valid_mask = jax.lax.dynamic_slice_in_dim(cache_mask, index, tokens.shape[1], axis=1)
    blocks = params["blocks"]
    written: Cache
    if isinstance(pattern, CacheSpan) and decoding == "token_step" and len(x) <= ROWS:
        dense = [KeyValues(layer.keys, layer.values) for layer in cache]
        x, written = token_step(config, model.policy, blocks, x, pattern, dense)
    else:
        x, written = _through_blocks(model, blocks, x, pattern, cache, index, valid_mask)
    hidden: Any = model.apply({"params": params}, x, valid_mask, method=model.normalise)
    return hidden, written


def _through_blocks(
    model: Transformer,
    blocks: Sequence[Mapping[str, Any]],
    x: jax.Array,
    pattern: AttentionPattern,
    cache: Sequence[KeyValues | PivotCache],
    index: jax.Array | int,
    valid_mask: jax.Array,
) -> tuple[jax.Array, Cache]:
    """x [B, T, D] through all blocks, one after the other; see `cached_forward` and `Block`."""
    block = Block(model.config, model.policy, model.programs.platform)
    written: list[Any] = []
    for layer, before in zip(blocks, cache, strict=True):
        x, after = block.apply({"params": layer}, x, pattern, before, index, valid_mask)
        written.append(after)
    return x, tuple(written)
