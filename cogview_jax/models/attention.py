"""Multi-head self-attention with the paper's precision relaxation, and its key/value cache.

Legend: B batch, T query positions, S key positions, N heads, H head width, D width. Heads stand
before positions [B, N, S, H]: one head's keys are contiguous, so decoding streams them from memory.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from cogview_jax.models.activation_max import sow_max
from cogview_jax.models.dropout import dropout
from cogview_jax.models.kernels.cached_attention import CacheSpan, cached_attention
from cogview_jax.models.kernels.fused_attention import Causal, fused_attention
from cogview_jax.models.linear import Linear
from cogview_jax.models.remat import ATTENDED, READ, named
from cogview_jax.runtime.precision import FLOAT32, Policy
from cogview_jax.runtime.sharding import constrain

#: Dropout of attention weights: (weights, a number that tells them from others) -> weights.
Drop = Callable[[jax.Array, jax.Array | int], jax.Array]


class LayerCache(Protocol):
    """The cache of one layer: `KeyValues`, or `PivotCache` of sparse attention."""

    @property
    def keys(self) -> jax.Array:
        """[B, N, S, H]."""

    @property
    def values(self) -> jax.Array:
        """[B, N, S, H]."""

    def write(self, index: jax.Array | int, keys: jax.Array, values: jax.Array) -> "LayerCache":
        """The cache with `keys` and `values` [B, N, T, H] at positions index..index + T - 1."""


@runtime_checkable
class SparsePattern(Protocol):
    """A pattern of sparse attention (`ThreeRegions`, `CachedRegions`), which attends by itself."""

    def attend(
        self, queries: jax.Array, cache: Any, alpha: float, dtype: DTypeLike, drop: Drop
    ) -> jax.Array:
        """[B, N, T, H] to the cache; see `sparse_attention.attend_regions`."""


#: Which keys each query sees. An array is a mask of dense attention, bool, True where a query sees
#: a key, broadcast to [B, N, T, S] (S is T without a cache, else the cache's length). `Causal` and
#: `CacheSpan` ask for kernels, which drop nothing; the others are those of sparse attention.
AttentionPattern = jax.Array | Causal | CacheSpan | SparsePattern


class KeyValues(NamedTuple):
    """The cache of one layer: keys and values [B, N, S, H].

    What lies beyond the written positions is never seen.
    """

    keys: jax.Array
    values: jax.Array

    def write(self, index: jax.Array | int, keys: jax.Array, values: jax.Array) -> "KeyValues":
        """The cache with `keys` and `values` [B, N, T, H] at positions index..index + T - 1."""
        return KeyValues(
            _written(self.keys, index, keys.astype(self.keys.dtype)),
            _written(self.values, index, values.astype(self.values.dtype)),
        )


def _written(cached: jax.Array, index: jax.Array | int, new: jax.Array) -> jax.Array:
    if len(cached) > 1:
        return jax.lax.dynamic_update_slice(cached, new, (0, 0, index, 0))
    # A single row is written without the axis of rows. XLA drops it for the products that read the
    # cache, and what is written in one form and read in another is copied whole.
    return jax.lax.dynamic_update_slice(cached[0], new[0], (0, index, 0))[None]


def causal_mask(length: int) -> jax.Array:
    """True where a query (row) may see a key (column), itself and what stands before: [T, T]."""
    return jnp.tril(jnp.ones((length, length), bool))


def attention_scores(
    queries: jax.Array, keys: jax.Array, alpha: float, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """(Q / (alpha sqrt H)) K^T: [B, N, T, H], [B, N, S, H] -> dtype [B, N, T, S].

    The scale is applied before the product, so that no product is large (CogView, equation 4).
    """
    queries = queries / jnp.asarray(alpha * queries.shape[-1] ** 0.5, queries.dtype)
    return jnp.einsum("bnth,bnsh->bnts", queries, keys, preferred_element_type=dtype)


def attention_weights(scores: jax.Array, mask: jax.Array, alpha: float) -> jax.Array:
    """softmax((scores - max) x alpha) over what a query sees (CogView, equation 4).

    The maximum is each row's own. With alpha 1 it is plain softmax attention.

    Args:
        scores: [B, N, T, S], from `attention_scores` with the same alpha. In float16 one above
            65,504 is infinite.
        mask: bool, True where a query sees a key, broadcast to [B, N, T, S].
        alpha: how much smaller the scores are than those of plain attention.

    Returns:
        [B, N, T, S] in the type of the scores; uniform for a query that sees nothing.
    """
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return relaxed_softmax(scores, alpha)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def relaxed_softmax(scores: jax.Array, alpha: float) -> jax.Array:
    """softmax((scores - max) x alpha) over the last axis; its gradient needs the result alone."""
    weights = jnp.exp((scores - scores.max(axis=-1, keepdims=True)) * alpha)
    return weights / weights.sum(axis=-1, keepdims=True)


@relaxed_softmax.defjvp
def _relaxed_softmax_jvp(alpha: float, primals: tuple, tangents: tuple) -> tuple:
    weights = relaxed_softmax(*primals, alpha)
    change = weights * tangents[0]
    return weights, alpha * (change - weights * change.sum(axis=-1, keepdims=True))


class Attention(nn.Module):
    """Self-attention with an output projection: [B, T, D] -> [B, T, D].

    alpha: see `attention_weights`. dropout: of the weights, where a "dropout" key is given.
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
        x: jax.Array,
        pattern: AttentionPattern,
        cache: LayerCache | None = None,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, LayerCache]:
        """Attends from x to itself, or, given a cache, to the cache with x written at `index`.

        Args:
            x: [B, T, D].
            pattern: which keys each query sees; it decides which program runs.
            cache: the keys and values of the layer so far; without one, those of x alone.
            index: where in the cache those of x are written.

        Returns:
            The output [B, T, D], and the keys and values attended to.
        """
        width, dtype = x.shape[-1], self.policy.compute
        projected = Linear(
            (3, width), ("embed", "qkv", "heads"), self.init_std, dtype, self.platform, name="qkv"
        )(x)
        projected = named(constrain(projected, "batch", "sequence", None, "heads"), READ)
        queries, keys, values = rearrange(
            projected, "b t three (n h) -> three b n t h", n=self.heads
        )
        cache = KeyValues(keys, values) if cache is None else cache.write(index, keys, values)
        if isinstance(pattern, Causal):
            y = fused_attention(queries, cache.keys, cache.values, pattern)
            y = rearrange(y, "b t n h -> b t (n h)")
        elif isinstance(pattern, CacheSpan):
            y = cached_attention(queries, cache.keys, cache.values, pattern)
            y = rearrange(y, "b t n h -> b t (n h)")
        elif isinstance(pattern, SparsePattern):
            y = self._sparse(queries, cache, pattern)
        else:
            y = self._dense(queries, cache, pattern)
        y = constrain(y, "batch", "sequence", "heads")
        out = Linear(
            (width,), ("heads", "embed"), self.out_init_std, dtype, self.platform, name="out"
        )
        return out(y), cache

    def _dense(self, queries: jax.Array, cache: LayerCache, mask: jax.Array) -> jax.Array:
        scores = attention_scores(queries, cache.keys, self.alpha, self.policy.reductions)
        sow_max(self, "scores", jnp.where(mask, scores, 0))
        weights = attention_weights(scores, mask, self.alpha)
        if self.has_rng("dropout"):
            weights = dropout(weights, self.dropout, self.make_rng("dropout"))
        y = jnp.einsum("bnts,bnsh->btnh", weights.astype(self.policy.compute), cache.values)
        return named(rearrange(y, "b t n h -> b t (n h)"), ATTENDED)

    def _sparse(self, queries: jax.Array, cache: LayerCache, pattern: SparsePattern) -> jax.Array:
        dropping = self.dropout > 0 and self.has_rng("dropout")
        key = self.make_rng("dropout") if dropping else None

        def drop(weights: jax.Array, number: jax.Array | int) -> jax.Array:
            if key is None:
                return weights
            return dropout(weights, self.dropout, jax.random.fold_in(key, number))

        y = pattern.attend(queries, cache, self.alpha, self.policy.reductions, drop)
        return named(rearrange(y, "b n t h -> b t (n h)"), ATTENDED)
