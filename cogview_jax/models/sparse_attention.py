"""Three-region sparse attention (arXiv 2105.13290, appendix): text, image pivots, and a window.

A query sees its window and the pivots before the window. The window is the query's own block of
`window` tokens up to itself, and the window_blocks - 1 blocks before that. The pivots are all text
tokens and random image tokens, drawn anew for each row and layer. One softmax goes over both, so
the result is that of dense attention under a mask, but the cost of a token is
pivots + window x window_blocks instead of the length.

Blocks and pivots are counted from the first token of each row, so padding changes nothing. Every
row and layer has the same number of pivots. A row with too few tokens fills the rest with a
position that no query sees.

Legend: B batch, T query positions, S key positions, N heads, H head width, P pivots, L layers.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from cogview_jax.models.attention import DropoutFn, KeyValues, LayerCache, attention_scores
from cogview_jax.runtime.sharding import constrain


class KeyRegion(NamedTuple):
    """A part of the keys that some queries see.

    Attributes:
        keys: the keys.
        values: the values.
        mask: True where a query sees a key, broadcast to [B, N, T, S].
        bias: a number that is added to the scores of all keys of the region.
    """

    keys: Float[Array, "B N S H"]
    values: Float[Array, "B N S H"]
    mask: Bool[Array, "..."]
    bias: float = 0.0


def attend_regions(
    queries: Float[Array | np.ndarray, "B N T H"],
    regions: Sequence[KeyRegion],
    alpha: float,
    dtype: DTypeLike,
    drop: DropoutFn,
) -> Float[Array, "B N T H"]:
    """Attends to several regions under one softmax.

    This computes softmax((scores - max) x alpha) as `attention_weights` does, where the maximum and
    the sum go over all regions. The sum divides the output instead of each weight, which takes a
    third of the time.

    Args:
        queries: the queries.
        regions: the regions, whose sizes S may differ.
        alpha: the divisor of the scores; see `attention_scores`.
        dtype: the type of the scores and the softmax.
        drop: a function that is applied to the weights of each region and the region's number.
    """
    lowest = jnp.finfo(dtype).min
    scores = []
    for region in regions:
        part = attention_scores(queries, region.keys, alpha, dtype) + region.bias / alpha
        scores.append(jnp.where(region.mask, part, lowest))
    maxima = [part.max(axis=-1, keepdims=True) for part in scores]
    largest = jax.lax.stop_gradient(functools.reduce(lambda a, b: jnp.maximum(a, b), maxima))
    weights = [jnp.exp((part - largest) * alpha) for part in scores]
    total = sum(part.sum(axis=-1, keepdims=True) for part in weights)
    y: jax.Array | int = sum(
        jnp.einsum(
            "bnts,bnsh->bnth",
            drop(part, i).astype(queries.dtype),
            region.values,
            # Before the division a sum may overflow float16.
            preferred_element_type=jnp.float32,
        )
        for i, (part, region) in enumerate(zip(weights, regions, strict=True))
    )
    return jnp.asarray(y / total, queries.dtype)


def gather_positions(
    x: Float[Array | np.ndarray, "B N S H"], positions: Int[Array | np.ndarray, "B P"]
) -> Float[Array, "B N P H"]:
    """Gathers the vectors at `positions` of each row; a position beyond S gives the last vector."""
    gathered = jax.vmap(lambda row, at: jnp.take(row, at, axis=1, mode="clip"))(x, positions)
    return constrain(gathered, "batch", "heads", None, None)


@flax.struct.dataclass
class ThreeRegions:
    """The attention pattern of whole rows, which begin at position 0.

    Attributes:
        pivots: the positions of the pivots, int32 [B, P], or [L, B, P] for a stack of layers. A
            missing pivot has the length of the row as its position.
        window: the number of tokens in a block; see `TransformerConfig`.
        window_blocks: the number of blocks in the window; see `TransformerConfig`.
        bias: a number that is added to the scores of pivots. It is 0 except for the release's form
            (`pivot_bias`).
    """

    pivots: Any
    window: int = flax.struct.field(pytree_node=False)
    window_blocks: int = flax.struct.field(pytree_node=False)
    bias: float = flax.struct.field(pytree_node=False, default=0.0)

    def attend(
        self,
        queries: Float[Array | np.ndarray, "B N T H"],
        cache: LayerCache,
        alpha: float,
        dtype: DTypeLike,
        drop: DropoutFn,
    ) -> Float[Array, "B N T H"]:
        """Attends to the keys and values of the same T positions; see `attend_regions`.

        One block of queries attends after the other. The backward pass computes the scores of a
        block again, so only those of one block are in memory at a time.
        """
        size, length = self.window, queries.shape[2]
        blocks = -(-length // size)
        before, after = (self.window_blocks - 1) * size, blocks * size - length
        # They are float32 here, so that the gradients of all blocks are summed in float32.
        wide = [x.astype(jnp.float32) for x in (cache.keys, cache.values)]
        pivots = [gather_positions(x, self.pivots) for x in wide]
        padding = ((0, 0), (0, 0), (before, after), (0, 0))
        padded = [jnp.pad(x, padding) for x in wide]
        queries = jnp.pad(queries, (*padding[:2], (0, after), padding[3]))

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def attend_block(item: tuple[jax.Array, jax.Array]) -> jax.Array:
            block, queries = item
            window = [
                jax.lax.dynamic_slice_in_dim(x, block * size, before + size, axis=2) for x in padded
            ]
            # Positions are relative to the first query of the block.
            positions = jnp.arange(-before, size)
            causal = (positions <= jnp.arange(size)[:, None]) & (positions >= -block * size)
            earlier = self.pivots[:, None, None, :] // size <= block - self.window_blocks
            pivot_keys, pivot_values = (x.astype(queries.dtype) for x in pivots)
            keys, values = (x.astype(queries.dtype) for x in window)
            regions = (
                KeyRegion(pivot_keys, pivot_values, earlier, self.bias),
                KeyRegion(keys, values, causal[None, None]),
            )
            return attend_regions(
                queries, regions, alpha, dtype, lambda weights, i: drop(weights, 2 * block + i)
            )

        in_blocks = queries.reshape(*queries.shape[:2], blocks, size, -1)
        y = jax.lax.map(attend_block, (jnp.arange(blocks), jnp.moveaxis(in_blocks, 2, 0)))
        return jnp.moveaxis(y, 0, 2).reshape(queries.shape)[:, :, :length]


class PivotCache(NamedTuple):
    """The cache of one layer, which holds the keys and values of the pivots a second time.

    The second copies are filled in as pivots are written, so no step has to gather them.

    Attributes:
        keys: the keys of all slots.
        values: the values of all slots.
        pivots: the slots of the pivots.
        pivot_keys: the keys of the pivots.
        pivot_values: the values of the pivots.
    """

    keys: Float[Array, "B N S H"]
    values: Float[Array, "B N S H"]
    pivots: Int[Array, "B P"]
    pivot_keys: Float[Array, "B N P H"]
    pivot_values: Float[Array, "B N P H"]

    def write(
        self,
        index: jax.Array | int,
        keys: Float[Array | np.ndarray, "B N T H"],
        values: Float[Array | np.ndarray, "B N T H"],
    ) -> "PivotCache":
        """Returns the cache with `keys` and `values` in the slots index..index + T - 1."""
        slots = jnp.asarray(index)[..., None] + jnp.arange(keys.shape[2])
        equal = slots[..., None] == self.pivots[:, None, :]  # [B, T, P]
        count = self.pivots.shape[1]
        # The rank of each written slot among the pivots. A slot that is no pivot gets a rank beyond
        # the last, which the update below drops.
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
    """The attention pattern of queries that continue a `PivotCache`.

    They see what they would see in the whole row. The release adds no bias here.

    Attributes:
        first: the slot of the first query, int32: one for all rows, or [B].
        starts: the slot of the first token of each row, int32 [B]. Earlier slots are padding.
        window: the number of tokens in a block; see `TransformerConfig`.
        window_blocks: the number of blocks in the window; see `TransformerConfig`.
    """

    first: Any
    starts: Any
    window: int = flax.struct.field(pytree_node=False)
    window_blocks: int = flax.struct.field(pytree_node=False)

    def attend(
        self,
        queries: Float[Array | np.ndarray, "B N T H"],
        cache: PivotCache,
        alpha: float,
        dtype: DTypeLike,
        drop: DropoutFn,
    ) -> Float[Array, "B N T H"]:
        """Attends to the cache; see `attend_regions`.

        If there are more queries than a block holds, one chunk of them attends after the other. The
        blocks of rows that start at different slots do not end together, but each window lies
        within the last window x window_blocks slots before its query.
        """
        if jnp.ndim(self.first):
            return self._attend_by_row(queries, cache, alpha, dtype, drop)
        length, slots = queries.shape[2], cache.keys.shape[2]
        size = min(length, self.window)
        chunks = -(-length // size)
        span = min(slots, self.window * self.window_blocks + size - 1)
        starts = self.starts[:, None]

        def attend_chunk(item: tuple[jax.Array | int, jax.Array]) -> jax.Array:
            chunk, queries = item
            query_slots = self.first + chunk * size + jnp.arange(size)
            start = jnp.clip(query_slots[-1] + 1 - span, 0, slots - span)
            keys, values = (
                jax.lax.dynamic_slice_in_dim(x, start, span, axis=2)
                for x in (cache.keys, cache.values)
            )
            # From slots to positions in the row.
            query_positions = (query_slots - starts)[:, None, :, None]
            positions = (start + jnp.arange(span) - starts)[:, None, None, :]
            pivots = (cache.pivots - starts)[:, None, None, :]
            # The last block before the window.
            outside = query_positions // self.window - self.window_blocks
            causal = (positions >= 0) & (positions <= query_positions)
            inside = causal & (positions // self.window > outside)
            regions = (
                KeyRegion(cache.pivot_keys, cache.pivot_values, pivots // self.window <= outside),
                KeyRegion(keys, values, inside),
            )
            return attend_regions(
                queries, regions, alpha, dtype, lambda weights, i: drop(weights, 2 * chunk + i)
            )

        if chunks == 1:
            return attend_chunk((0, jnp.asarray(queries)))
        padded = jnp.pad(queries, ((0, 0), (0, 0), (0, chunks * size - length), (0, 0)))
        in_chunks = padded.reshape(*padded.shape[:2], chunks, size, -1)
        y = jax.lax.map(attend_chunk, (jnp.arange(chunks), jnp.moveaxis(in_chunks, 2, 0)))
        return jnp.moveaxis(y, 0, 2).reshape(padded.shape)[:, :, :length]

    def _attend_by_row(
        self,
        queries: Float[Array | np.ndarray, "B N T H"],
        cache: PivotCache,
        alpha: float,
        dtype: DTypeLike,
        drop: DropoutFn,
    ) -> Float[Array, "B N T H"]:
        """The same, of rows whose queries stand at different slots."""

        def row(first: Any, start: Any, queries: Any, cache: PivotCache) -> jax.Array:
            pattern = CachedRegions(first, start[None], self.window, self.window_blocks)
            alone: PivotCache = jax.tree.map(lambda leaf: leaf[None], cache)
            return pattern.attend(queries[None], alone, alpha, dtype, drop)[0]

        return jax.vmap(row)(self.first, self.starts, jnp.asarray(queries), cache)


def pivot_bias(length: int, pivots: int) -> float:
    """Returns log(floor(length / pivots)), which the release adds to the score of each pivot.

    A pivot then counts as if it stood for length / pivots keys. This holds for text too, although
    all text tokens are pivots. If there are more pivots than tokens, the release fails; this
    function returns 0.
    """
    return math.log(max(1, length // pivots))
