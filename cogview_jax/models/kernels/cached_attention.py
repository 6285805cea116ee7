"""Attention of one new token a row to a cache, as a kernel that reads what is filled of it.

Without it XLA reads all slots of the cache for every token, those too that are still empty. Written
in Pallas for NVIDIA GPUs, through Triton. Scores and softmax are float32, as in `fused_attention`.

Legend: B batch, N heads, S slots of the cache, H head width.
"""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

#: Slots that are read at a time, and threads (in warps) that do it.
BLOCK, WARPS = 256, 8


@flax.struct.dataclass
class CacheSpan:
    """The attention pattern of one new token a row: it sees the slots starts..index of its cache.

    It asks for the kernel. starts: int32 [B]. index: int32, the slot of the token itself.
    interpret: the kernel runs without a GPU, slowly.
    """

    starts: Any
    index: Any
    interpret: bool = flax.struct.field(pytree_node=False, default=False)


def runs_cached_attention(head_width: int) -> bool:
    """Whether a single device that runs the fused kernel can run this one, for 16-bit numbers."""
    return head_width & (head_width - 1) == 0 and head_width >= 16


def cached_attention(
    queries: Float[Array, "B N 1 H"],
    keys: Float[Array, "B N S H"],
    values: Float[Array, "B N S H"],
    span: CacheSpan,
) -> Float[Array, "B 1 N H"]:
    """softmax(Q K^T / sqrt H) V over the filled slots.

    queries: [B, N, 1, H]. keys, values: [B, N, S, H]. Returns [B, 1, N, H].
    """
    batch, heads, slots, width = keys.shape
    stops = jnp.full(batch, span.index + 1, jnp.int32)

    def row(*block: int | None) -> pl.BlockSpec:
        return pl.BlockSpec((None, *block), lambda b, n: (b, n, *(0,) * (len(block) - 1)))

    number, cached = pl.BlockSpec((None,), lambda b, n: (b,)), row(None, slots, width)
    return pl.pallas_call(
        functools.partial(_kernel, scale=width**-0.5),
        grid=(batch, heads),
        in_specs=[number, number, row(None, width), cached, cached],
        out_specs=row(None, width),
        out_shape=jax.ShapeDtypeStruct((batch, heads, width), queries.dtype),
        interpret=span.interpret,
        **compiler(WARPS),
    )(span.starts.astype(jnp.int32), stops, queries[:, :, 0], keys, values)[:, None]


def compiler(warps: int, stages: int | None = None) -> dict[str, Any]:
    """Arguments of a kernel's call: its threads, in 32s, and how many reads of a loop overlap.

    Without `stages` Triton's own number.
    """
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=warps, num_stages=stages)}


def _kernel(
    start_ref: Any, stop_ref: Any, query_ref: Any, keys_ref: Any, values_ref: Any, out_ref: Any,
    *, scale: float
) -> None:  # fmt: skip
    """One head of one row."""
    query = query_ref[...].astype(jnp.float32) * scale
    total, _, shares = online_softmax(query, keys_ref, values_ref, start_ref[...], stop_ref[...])
    out_ref[...] = (total / shares).astype(out_ref.dtype)


def online_softmax(
    query: jax.Array, keys_ref: Any, values_ref: Any, start: jax.Array, stop: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inside a kernel, of one head: a block of slots after the other, under a running maximum.

    (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".)

    Args:
        query: [H], scaled.
        keys_ref, values_ref: [S, H].
        start, stop: the slots start..stop - 1 are seen.

    Returns:
        The values' sum [H] by exp(score - largest), the largest score, and the sum of those
        factors: all float32, and zeros for the sums where nothing is seen.
    """
    from jax.experimental.pallas import triton

    def block(i: jax.Array, carry: tuple) -> tuple:
        total, largest, shares = carry
        slots = i * BLOCK + jnp.arange(BLOCK)
        inside = (slots >= start) & (slots < stop)

        def read(ref: Any) -> jax.Array:
            at = ref.at[pl.ds(i * BLOCK, BLOCK), :]
            return triton.load(at, mask=inside[:, None], other=0.0).astype(jnp.float32)

        scores = jnp.where(inside, jnp.sum(read(keys_ref) * query[None, :], axis=1), -jnp.inf)
        now = jnp.maximum(largest, jnp.max(scores))
        weights, faded = jnp.exp(scores - now), jnp.exp(largest - now)
        total = total * faded + jnp.sum(weights[:, None] * read(values_ref), axis=0)
        return total, now, shares * faded + jnp.sum(weights)

    nothing = (jnp.zeros_like(query), jnp.finfo(jnp.float32).min, jnp.float32(0))
    return jax.lax.fori_loop(start // BLOCK, pl.cdiv(stop, BLOCK), block, nothing)
