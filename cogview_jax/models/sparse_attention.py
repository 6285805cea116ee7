"""Three-region sparse attention (CogView's appendix): text, random image pivots, and a window.

A query sees its own block of `window` tokens up to itself, the blocks right before it, and of all
blocks before those the pivots: every token of text, and random image tokens, anew for each
row and layer. One softmax goes over both, so that the result is that of dense attention under a
mask; but the cost of a token is pivots + window x window_blocks instead of the length.

Blocks and pivots count a row's own tokens, so padding changes nothing. There are as many pivots in
every row and layer; where a row has too few tokens, the rest are a place that nobody sees.

Legend: B batch, T query positions, S key positions, N heads, H head width, P pivots, L layers.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cogview_jax.models.attention import Drop, KeyValues, LayerCache, attention_scores
from cogview_jax.runtime.sharding import constrain


class KeyRegion(NamedTuple):
    """Some of the keys: keys and values [B, N, S, H], and which queries see them.

    mask: bool, broadcast to [B, N, T, S]. bias: what is added to their scores.
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array
    bias: float = 0.0


def attend_regions(
    queries: jax.Array, regions: Sequence[KeyRegion], alpha: float, dtype: DTypeLike, drop: Drop
) -> jax.Array:
    """Attention of [B, N, T, H] to several regions under one softmax: [B, N, T, H].

    softmax((scores - max) x alpha) as in `attention_weights`, the maximum and the sum going over
    all regions. The sum divides what comes out, not each weight: that is a third of the time.

    alpha and dtype (of scores and softmax): see `attention_scores`. drop: the weights of each
    region go through it, with the region's number.
    """
    hidden = jnp.finfo(dtype).min
    scores = []
    for region in regions:
        part = attention_scores(queries, region.keys, alpha, dtype) + region.bias / alpha
        scores.append(jnp.where(region.mask, part, hidden))
    maxima = [part.max(axis=-1, keepdims=True) for part in scores]
    largest = jax.lax.stop_gradient(functools.reduce(lambda a, b: jnp.maximum(a, b), maxima))
    weights = [jnp.exp((part - largest) * alpha) for part in scores]
    total = sum(part.sum(axis=-1, keepdims=True) for part in weights)
    y: jax.Array | int = sum(
        jnp.einsum(
            "bnts,bnsh->bnth",
            drop(part, i).astype(queries.dtype),
            region.values,
            # Before the division a sum may be larger than float16 can hold.
            preferred_element_type=jnp.float32,
        )
        for i, (part, region) in enumerate(zip(weights, regions, strict=True))
    )
    return jnp.asarray(y / total, queries.dtype)


def take(x: jax.Array, places: jax.Array) -> jax.Array:
    """What stands at `places` int32 [B, P] of x [B, N, S, H]: [B, N, P, H]; the last beyond S."""
    taken = jax.vmap(lambda row, at: jnp.take(row, at, axis=1, mode="clip"))(x, places)
    return constrain(taken, "batch", "heads", None, None)


@flax.struct.dataclass
class ThreeRegions:
    """What the queries of whole rows see, a row beginning at position 0.

    pivots: int32 [B, P], or [L, B, P] for a stack of layers; places in the row, and the length of
    the row for those that are missing. window, window_blocks: see `TransformerConfig`. bias: what
    is added to the score of a pivot; 0 but in the release's form (`pivot_bias`).
    """

    pivots: jax.Array
    window: int = flax.struct.field(pytree_node=False)
    window_blocks: int = flax.struct.field(pytree_node=False)
    bias: float = flax.struct.field(pytree_node=False, default=0.0)

    def attend(
        self, queries: jax.Array, cache: LayerCache, alpha: float, dtype: DTypeLike, drop: Drop
    ) -> jax.Array:
        """[B, N, T, H] to keys and values of as many positions; see `attend_regions`.

        One block of queries after the other. The backward pass computes a block's scores again, so
        that those of one block at a time are in memory.
        """
        size, length = self.window, queries.shape[2]
        blocks = -(-length // size)
        before, behind = (self.window_blocks - 1) * size, blocks * size - length
        # In float32, in which the gradients of all blocks then add up, whatever the keys' type.
        wide = [x.astype(jnp.float32) for x in (cache.keys, cache.values)]
        pivots = [take(x, self.pivots) for x in wide]
        padding = ((0, 0), (0, 0), (before, behind), (0, 0))
        window = [jnp.pad(x, padding) for x in wide]
        queries = jnp.pad(queries, (*padding[:2], (0, behind), padding[3]))

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def of_block(item: tuple[jax.Array, jax.Array]) -> jax.Array:
            block, queries = item
            near = [
                jax.lax.dynamic_slice_in_dim(x, block * size, before + size, axis=2) for x in window
            ]
            places = jnp.arange(-before, size)
            causal = (places <= jnp.arange(size)[:, None]) & (places >= -block * size)
            far = self.pivots[:, None, None, :] // size <= block - self.window_blocks
            pivot_keys, pivot_values = (x.astype(queries.dtype) for x in pivots)
            keys, values = (x.astype(queries.dtype) for x in near)
            regions = (
                KeyRegion(pivot_keys, pivot_values, far, self.bias),
                KeyRegion(keys, values, causal[None, None]),
            )
            return attend_regions(
                queries, regions, alpha, dtype, lambda weights, i: drop(weights, 2 * block + i)
            )

        in_blocks = queries.reshape(*queries.shape[:2], blocks, size, -1)
        y = jax.lax.map(of_block, (jnp.arange(blocks), jnp.moveaxis(in_blocks, 2, 0)))
        return jnp.moveaxis(y, 0, 2).reshape(queries.shape)[:, :, :length]


class PivotCache(NamedTuple):
    """The cache of one layer: keys and values of all slots, and once more those of the pivots.

    keys, values: [B, N, S, H]. pivots: int32 [B, P], their slots. pivot_keys, pivot_values:
    [B, N, P, H], which grow as pivots are written, so that no step has to gather them.
    """

    keys: jax.Array
    values: jax.Array
    pivots: jax.Array
    pivot_keys: jax.Array
    pivot_values: jax.Array

    def write(self, index: jax.Array | int, keys: jax.Array, values: jax.Array) -> "PivotCache":
        """The cache with `keys` and `values` [B, N, T, H] at slots index..index + T - 1."""
        slots = index + jnp.arange(keys.shape[2])
        equal = slots[:, None] == self.pivots[:, None, :]  # [B, T, P]
        count = self.pivots.shape[1]
        ranks = jnp.where(equal.any(-1), jnp.argmax(equal, -1), count)
        put = jax.vmap(lambda old, at, new: old.at[:, at].set(new, mode="drop"))
        written = KeyValues(self.keys, self.values).write(index, keys, values)
        return PivotCache(
            *written,
            self.pivots,
            put(self.pivot_keys, ranks, keys.astype(self.pivot_keys.dtype)),
            put(self.pivot_values, ranks, values.astype(self.pivot_values.dtype)),
        )


@flax.struct.dataclass
class CachedRegions:
    """What queries see that continue a `PivotCache`: what they would see in the whole row.

    first: the slot of the first query. starts: int32 [B], the slot of each row's first token; what
    lies before is padding. The rest: see `ThreeRegions`; the release adds no bias here.
    """

    first: jax.Array | int
    starts: jax.Array
    window: int = flax.struct.field(pytree_node=False)
    window_blocks: int = flax.struct.field(pytree_node=False)

    def attend(
        self, queries: jax.Array, cache: PivotCache, alpha: float, dtype: DTypeLike, drop: Drop
    ) -> jax.Array:
        """[B, N, T, H] to the cache; see `attend_regions`.

        More than a block of queries goes in parts. Blocks of rows that start at different slots do
        not end together, but all windows lie within the last window x window_blocks slots before
        the query.
        """
        length, slots = queries.shape[2], cache.keys.shape[2]
        size = min(length, self.window)
        parts = -(-length // size)
        span = min(slots, self.window * self.window_blocks + size - 1)
        starts = self.starts[:, None]

        def of_part(item: tuple[jax.Array | int, jax.Array]) -> jax.Array:
            part, queries = item
            own = self.first + part * size + jnp.arange(size)
            start = jnp.clip(own[-1] + 1 - span, 0, slots - span)
            keys, values = (
                jax.lax.dynamic_slice_in_dim(x, start, span, axis=2)
                for x in (cache.keys, cache.values)
            )
            # Slots as places in the row.
            own = (own - starts)[:, None, :, None]
            others = (start + jnp.arange(span) - starts)[:, None, None, :]
            pivots = (cache.pivots - starts)[:, None, None, :]
            oldest = own // self.window - self.window_blocks
            causal = (others >= 0) & (others <= own) & (others // self.window > oldest)
            regions = (
                KeyRegion(cache.pivot_keys, cache.pivot_values, pivots // self.window <= oldest),
                KeyRegion(keys, values, causal),
            )
            return attend_regions(
                queries, regions, alpha, dtype, lambda weights, i: drop(weights, 2 * part + i)
            )

        if parts == 1:
            return of_part((0, queries))
        padded = jnp.pad(queries, ((0, 0), (0, 0), (0, parts * size - length), (0, 0)))
        in_parts = padded.reshape(*padded.shape[:2], parts, size, -1)
        y = jax.lax.map(of_part, (jnp.arange(parts), jnp.moveaxis(in_parts, 2, 0)))
        return jnp.moveaxis(y, 0, 2).reshape(padded.shape)[:, :, :length]


def pivot_bias(length: int, pivots: int) -> float:
    """What the release adds to a pivot's score, as if it stood for so many keys.

    log(floor(length / pivots)), for text too, although all of it is there. With more pivots than
    tokens the release fails; here nothing is added.
    """
    return math.log(max(1, length // pivots))
