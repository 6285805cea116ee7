"""Causal attention in blocks of queries, on every platform.

A block of queries meets the keys up to its own end and no others, so about half of the scores that
the causal mask hides are never computed, and those of one block alone are in memory. The backward
pass computes the scores of a block again (Dao et al. 2022, arXiv 2205.14135, algorithm 4): it keeps
the output, and the maximum and the sum of the softmax of each query.

The result is that of `attention_scores`, `attention_weights` and `dropout` under a causal mask,
with the same weights dropped, up to rounding.

Legend: B batch, T positions, N heads, H head width, t queries of a block, S keys that it meets.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from cogview_jax.models.dropout import dropout
from cogview_jax.models.remat import ATTENTION_OUTPUT

#: Queries of a block, about. With fewer, the products are small; with more, more of what the mask
#: hides is computed. On two cores 140 to 270 take the same time.
BLOCK = 192


@flax.struct.dataclass
class CausalBlocks:
    """The attention pattern in which a query of a whole sequence sees its own position and earlier.

    It asks for attention in blocks.

    Attributes:
        block: queries of a block, about.
    """

    block: int = flax.struct.field(pytree_node=False, default=BLOCK)


@dataclass(frozen=True)
class BlockAttention:
    """What attention computes beside its arrays.

    Attributes:
        block: queries of a block, about; the blocks of a sequence differ by one at most.
        alpha: the divisor of PB-relax, see `attention_scores`.
        dtype: the type of the scores and the softmax.
        rate: the share of the weights that are dropped.
    """

    block: int
    alpha: float
    dtype: DTypeLike
    rate: float = 0.0

    def __call__(
        self,
        queries: Float[Array, "B N T H"],
        keys: Float[Array, "B N T H"],
        values: Float[Array, "B N T H"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B N T H"]:
        """Attends; without a random key nothing is dropped."""
        return _attend(queries, keys, values, key, self)

    def spans(self, length: int) -> list[tuple[int, int]]:
        """The first query of each block, and one past its last."""
        count = max(1, round(length / self.block))
        edges = [length * i // count for i in range(count + 1)]
        return list(itertools.pairwise(edges))

    def scores(
        self, queries: Float[Array, "B N t H"], keys: Float[Array, "B N S H"], first: int
    ) -> Float[Array, "B N t S"]:
        """The scores of a block, the lowest number where the mask hides them.

        `queries` are divided already; `first` is the position of the first.
        """
        scores = jnp.einsum("bnth,bnsh->bnts", queries, keys, preferred_element_type=self.dtype)
        rows = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2) + first
        columns = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 3)
        return jnp.where(columns <= rows, scores, jnp.finfo(self.dtype).min)

    def divided(self, queries: Float[Array, "B N T H"]) -> Float[Array, "B N T H"]:
        """Q / (alpha sqrt H)."""
        return queries / jnp.asarray(self.alpha * queries.shape[-1] ** 0.5, queries.dtype)

    def drop(
        self, weights: Float[Array, "B N t S"], key: Key[Array, ""] | None, first: int, length: int
    ) -> Float[Array, "B N t S"]:
        """Drops the weights that dense attention over `length` positions drops."""
        if key is None:
            return weights
        batch, heads = weights.shape[:2]
        whole = (batch, heads, length, length)
        return dropout(weights, self.rate, key, whole=whole, start=(0, 0, first, 0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    key: jax.Array | None,
    attention: BlockAttention,
) -> jax.Array:
    return _forward(queries, keys, values, key, attention)[0]


def _forward(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    key: jax.Array | None,
    attention: BlockAttention,
) -> tuple[jax.Array, tuple[Any, ...]]:
    length, divided = queries.shape[2], attention.divided(queries)
    outputs, maxima, sums = [], [], []
    for first, last in attention.spans(length):
        scores = attention.scores(divided[:, :, first:last], keys[:, :, :last], first)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp((scores - largest) * attention.alpha)
        total = weights.sum(axis=-1, keepdims=True)
        weights = attention.drop(weights, key, first, length).astype(values.dtype)
        # Before the division a sum may overflow float16.
        y = jnp.einsum(
            "bnts,bnsh->bnth", weights, values[:, :, :last], preferred_element_type=jnp.float32
        )
        outputs.append((y / total).astype(queries.dtype))
        maxima.append(largest)
        sums.append(total)
    y, largest, total = (
        checkpoint_name(jnp.concatenate(parts, axis=2), ATTENTION_OUTPUT)
        for parts in (outputs, maxima, sums)
    )
    return y, (queries, keys, values, key, y, largest, total)


def _backward(
    attention: BlockAttention, saved: tuple[Any, ...], dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """The gradients, where P are the weights and D is what dropout multiplies them with.

    With dP = D (dY V^T), the gradient of the scores, times sqrt H, is P (dP - rowsum(P dP)), and
    rowsum(P dP) is rowsum(Y dY). Alpha cancels: the scores are divided by it, and multiplied with
    it inside the softmax.
    """
    # Or XLA would find the scores of the forward pass equal, and keep them.
    saved, dy = jax.lax.optimization_barrier((saved, dy))
    queries, keys, values, key, y, largest, total = saved
    length, divided = queries.shape[2], attention.divided(queries)
    scaled = queries / jnp.asarray(queries.shape[-1] ** 0.5, queries.dtype)
    common = jnp.sum(y.astype(jnp.float32) * dy.astype(jnp.float32), axis=-1, keepdims=True)
    common = common.astype(attention.dtype)
    inverse = 1 / total
    dqueries, dkeys, dvalues = [], [], []
    for first, last in attention.spans(length):
        block = slice(first, last)
        scores = attention.scores(divided[:, :, block], keys[:, :, :last], first)
        weights = jnp.exp((scores - largest[:, :, block]) * attention.alpha) * inverse[:, :, block]
        dropped = attention.drop(weights, key, first, length).astype(values.dtype)
        own = dy[:, :, block]
        # The narrow operand comes first, because XLA's CPU backend transposes that one in memory.
        dvalues.append(jnp.einsum("bnth,bnts->bnhs", own, dropped))
        dweights = jnp.einsum(
            "bnth,bnsh->bnts", own, values[:, :, :last], preferred_element_type=attention.dtype
        )
        dweights = attention.drop(dweights, key, first, length)
        dscores = (weights * (dweights - common[:, :, block])).astype(queries.dtype)
        dqueries.append(jnp.einsum("bnts,bnsh->bnth", dscores, keys[:, :, :last]))
        dkeys.append(jnp.einsum("bnth,bnts->bnhs", scaled[:, :, block], dscores))
    root = jnp.asarray(queries.shape[-1] ** 0.5, queries.dtype)
    return (
        jnp.concatenate(dqueries, axis=2) / root,
        _over_blocks(dkeys, length).astype(keys.dtype),
        _over_blocks(dvalues, length).astype(values.dtype),
        None,
    )


def _over_blocks(
    parts: Sequence[Float[Array, "B N H _"]], length: int
) -> Float[Array, "B N {length} H"]:
    """Adds up what the blocks give to the keys that they met."""
    wide = [
        jnp.pad(part.astype(jnp.float32), ((0, 0), (0, 0), (0, 0), (0, length - part.shape[3])))
        for part in parts
    ]
    return jnp.moveaxis(functools.reduce(jnp.add, wide), 3, 2)


_attend.defvjp(_forward, _backward)
