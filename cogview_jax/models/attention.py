"""Multi-head self-attention with precision relaxation, and its key/value cache.

Legend: B batch, T query positions, S key positions, N heads, H head width, D width. The axis of
heads comes before the axis of positions, so the keys of one head are contiguous and decoding
streams them from memory.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Num

from cogview_jax.models.activation_max import sow_max
from cogview_jax.models.dropout import dropout
from cogview_jax.models.kernels.block_attention import BlockAttention, CausalBlocks
from cogview_jax.models.kernels.cached_attention import CacheSpan, cached_attention
from cogview_jax.models.kernels.fused_attention import Causal, fused_attention
from cogview_jax.models.linear import Linear
from cogview_jax.models.quantized_cache import QuantizedSlots
from cogview_jax.models.remat import ATTENTION_OUTPUT, QKV
from cogview_jax.runtime.precision import FLOAT32, Policy
from cogview_jax.runtime.sharding import constrain

#: The collection in which a layer of dense attention records its weights, float [B, N, T, S], if
#: the caller makes it mutable (`models.layer_attention`).
ATTENTION_WEIGHTS = "attention_weights"

#: A function that drops attention weights. It takes the weights and a number, which makes its
#: random bits differ from those of other calls, and returns the weights.
DropoutFn = Callable[[jax.Array, jax.Array | int], jax.Array]


@runtime_checkable
class LayerCache(Protocol):
    """The cache of one layer: `KeyValues`, or `PivotCache` of sparse attention."""

    @property
    def keys(self) -> Any:
        """The keys of all slots: float [B, N, S, H], or `QuantizedSlots`."""

    @property
    def values(self) -> Any:
        """The values of all slots, in the same form."""

    def write(
        self,
        index: jax.Array | int,
        keys: Float[Array | np.ndarray, "B N T H"],
        values: Float[Array | np.ndarray, "B N T H"],
    ) -> "LayerCache":
        """Returns the cache with `keys` and `values` in the slots index..index + T - 1.

        An index that is an array [B] is of each row by itself.
        """


@runtime_checkable
class SparsePattern(Protocol):
    """A pattern of sparse attention (`ThreeRegions`, `CachedRegions`), which attends by itself."""

    def attend(
        self,
        queries: Float[Array | np.ndarray, "B N T H"],
        cache: Any,
        alpha: float,
        dtype: DTypeLike,
        drop: DropoutFn,
    ) -> Float[Array, "B N T H"]:
        """Attends from the queries to a `LayerCache`; see `sparse_attention.attend_regions`."""


#: Which keys each query sees. An array is the mask of dense attention: bool, True where a query
#: sees a key, and broadcast to [B, N, T, S], where S is T without a cache and else the length of
#: the cache. `Causal` and `CacheSpan` ask for kernels, which cannot drop weights; `CausalBlocks` is
#: computed block by block. The others are patterns of sparse attention.
AttentionPattern = jax.Array | np.ndarray | Causal | CausalBlocks | CacheSpan | SparsePattern


class KeyValues(NamedTuple):
    """The cache of one layer. No query sees the slots that have not been written.

    Keys and values are arrays, or both are in 8 bits (`models.quantized_cache`).
    """

    keys: Any  # Float[Array, "B N S H"] | QuantizedSlots
    values: Any

    def write(
        self,
        index: jax.Array | int,
        keys: Float[Array | np.ndarray, "B N T H"],
        values: Float[Array | np.ndarray, "B N T H"],
    ) -> "KeyValues":
        """Returns the cache with `keys` and `values` in the slots index..index + T - 1."""
        return KeyValues(_write(self.keys, index, keys), _write(self.values, index, values))


def _write(
    cached: Float[Array | np.ndarray, "B N S H"] | QuantizedSlots,
    index: jax.Array | int,
    new: Float[Array | np.ndarray, "B N T H"],
) -> Any:
    """Writes keys or values to slots, in the form of those that are cached."""
    if isinstance(cached, QuantizedSlots):
        parts = zip(cached, QuantizedSlots.of(new), strict=True)
        return QuantizedSlots(*(_write_array(old, index, part) for old, part in parts))
    return _write_array(cached, index, new.astype(cached.dtype))


def _write_array(
    cached: Num[Array | np.ndarray, "B N S _"],
    index: jax.Array | int,
    new: Num[Array | np.ndarray, "B N T _"],
) -> Num[Array, "B N S _"]:
    if jnp.ndim(index):
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
        return jax.vmap(write)(cached, new, index)
    if len(cached) > 1:
        return jax.lax.dynamic_update_slice(cached, new, (0, 0, index, 0))
    # A single row is written without its batch axis. XLA drops that axis in the products that read
    # the cache, and it copies a cache that is written in one shape and read in another.
    return jax.lax.dynamic_update_slice(cached[0], new[0], (0, index, 0))[None]


def causal_mask(length: int) -> Bool[Array, "{length} {length}"]:
    """Returns a mask that is True where a query (row) sees a key (column): itself and before."""
    return jnp.tril(jnp.ones((length, length), bool))


def attention_scores(
    queries: Float[Array | np.ndarray, "B N T H"],
    keys: Float[Array | np.ndarray, "B N S H"] | QuantizedSlots,
    alpha: float,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B N T S"]:
    """Computes (Q / (alpha sqrt H)) K^T in the type `dtype` (arXiv 2105.13290, equation 4).

    The queries are divided before the product, so that no product is large.
    """
    queries = queries / jnp.asarray(alpha * queries.shape[-1] ** 0.5, queries.dtype)
    if isinstance(keys, QuantizedSlots):
        return keys.scores(queries).astype(dtype)
    return jnp.einsum("bnth,bnsh->bnts", queries, keys, preferred_element_type=dtype)


def attention_weights(
    scores: Float[Array | np.ndarray, "B N T S"],
    mask: Bool[Array | np.ndarray, "..."],
    alpha: float,
) -> Float[Array, "B N T S"]:
    """Computes softmax((scores - max) x alpha) over the keys that each query sees.

    This is equation 4 of arXiv 2105.13290. The maximum is taken for each query by itself. With an
    alpha of 1 it is the usual softmax attention.

    Args:
        scores: the result of `attention_scores` with the same alpha. In float16 a score above
            65,504 is infinite.
        mask: True where a query sees a key, broadcast to [B, N, T, S].
        alpha: the factor by which the scores are smaller than those of usual attention.

    Returns:
        The weights in the type of the scores. A query that sees no key has uniform weights.
    """
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return relaxed_softmax(scores, alpha)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def relaxed_softmax(
    scores: Float[Array | np.ndarray, "*B S"], alpha: float
) -> Float[Array, "*B S"]:
    """Computes softmax((scores - max) x alpha) over the last axis.

    The gradient is computed from the result alone, so the scores need not be kept.
    """
    weights = jnp.exp((scores - scores.max(axis=-1, keepdims=True)) * alpha)
    return weights / weights.sum(axis=-1, keepdims=True)


@relaxed_softmax.defjvp
def _relaxed_softmax_jvp(alpha: float, primals: tuple, tangents: tuple) -> tuple:
    weights = relaxed_softmax(*primals, alpha)
    weighted = weights * tangents[0]
    return weights, alpha * (weighted - weights * weighted.sum(axis=-1, keepdims=True))


class Attention(nn.Module):
    """Self-attention with an output projection.

    Attributes:
        heads: the number of heads N.
        alpha: the divisor of PB-relax; see `attention_weights`.
        dropout: the dropout rate of the weights. It applies if a "dropout" key is given.
        init_std: the standard deviation of the initial query, key and value projections.
        out_init_std: the standard deviation of the initial output projection.
        policy: the types of the arithmetic.
        platform: see `Linear`.
    """

    heads: int
    alpha: float
    dropout: float
    init_std: float
    out_init_std: float
    policy: Policy = FLOAT32
    platform: str = "cpu"

    @nn.compact
    def __call__(
        self,
        x: Float[Array | np.ndarray, "B T D"],
        pattern: AttentionPattern,
        cache: LayerCache | None = None,
        index: jax.Array | int = 0,
    ) -> tuple[Float[Array, "B T D"], LayerCache]:
        """Attends from x to itself or, if there is a cache, to the cache after x is written to it.

        Args:
            x: the input.
            pattern: which keys each query sees. It also decides which program runs.
            cache: the keys and values of the tokens so far; None attends to those of x alone.
            index: the first slot of the cache that the keys and values of x are written to; an
                array [B] where rows stand at different slots.

        Returns:
            The output, and the keys and values that were attended to.
        """
        width, dtype = x.shape[-1], self.policy.compute
        projected = Linear(
            (3, width), ("embed", "qkv", "heads"), self.init_std, dtype, self.platform, name="qkv"
        )(x)
        projected = checkpoint_name(constrain(projected, "batch", "sequence", None, "heads"), QKV)
        queries, keys, values = rearrange(
            projected, "b t three (n h) -> three b n t h", n=self.heads
        )
        cache = KeyValues(keys, values) if cache is None else cache.write(index, keys, values)
        if isinstance(pattern, Causal):
            y = fused_attention(queries, cache.keys, cache.values, pattern)
            y = rearrange(y, "b t n h -> b t (n h)")
        elif isinstance(pattern, CausalBlocks):
            y = self._attend_blocks(queries, cache, pattern)
        elif isinstance(pattern, CacheSpan):
            y = cached_attention(queries, cache.keys, cache.values, pattern)
            y = rearrange(y, "b t n h -> b t (n h)")
        elif isinstance(pattern, SparsePattern):
            y = self._attend_sparse(queries, cache, pattern)
        else:
            y = self._attend_dense(queries, cache, pattern)
        y = constrain(y, "batch", "sequence", "heads")
        out = Linear(
            (width,), ("heads", "embed"), self.out_init_std, dtype, self.platform, name="out"
        )
        return out(y), cache

    def _attend_dense(
        self,
        queries: Float[Array, "B N T H"],
        cache: LayerCache,
        mask: Bool[Array | np.ndarray, "..."],
    ) -> Float[Array, "B T D"]:
        scores = attention_scores(queries, cache.keys, self.alpha, self.policy.reductions)
        sow_max(self, "scores", jnp.where(mask, scores, 0))
        weights = attention_weights(scores, mask, self.alpha)
        if self.is_mutable_collection(ATTENTION_WEIGHTS) and not self.is_initializing():
            self.sow(ATTENTION_WEIGHTS, "weights", weights)
        if (key := self._dropout_key()) is not None:
            weights = dropout(weights, self.dropout, key)
        if isinstance(cache.values, QuantizedSlots):
            y = jnp.swapaxes(cache.values.average(weights), 1, 2).astype(self.policy.compute)
        else:
            y = jnp.einsum("bnts,bnsh->btnh", weights.astype(self.policy.compute), cache.values)
        return checkpoint_name(rearrange(y, "b t n h -> b t (n h)"), ATTENTION_OUTPUT)

    def _attend_blocks(
        self, queries: Float[Array, "B N T H"], cache: LayerCache, pattern: CausalBlocks
    ) -> Float[Array, "B T D"]:
        key = self._dropout_key()
        rate = 0.0 if key is None else self.dropout
        attend = BlockAttention(pattern.block, self.alpha, self.policy.reductions, rate)
        y = attend(queries, cache.keys, cache.values, key)
        return rearrange(y, "b n t h -> b t (n h)")

    def _dropout_key(self) -> jax.Array | None:
        """A key where weights are dropped."""
        dropping = self.dropout > 0 and self.has_rng("dropout")
        return self.make_rng("dropout") if dropping else None

    def _attend_sparse(
        self, queries: Float[Array, "B N T H"], cache: LayerCache, pattern: SparsePattern
    ) -> Float[Array, "B T D"]:
        key = self._dropout_key()

        def drop(weights: jax.Array, number: jax.Array | int) -> jax.Array:
            if key is None:
                return weights
            return dropout(weights, self.dropout, jax.random.fold_in(key, number))

        y = pattern.attend(queries, cache, self.alpha, self.policy.reductions, drop)
        return checkpoint_name(rearrange(y, "b n t h -> b t (n h)"), ATTENTION_OUTPUT)
