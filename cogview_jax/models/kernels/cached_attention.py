"""Attention of one new token a row to a cache, as a kernel that reads only its filled slots.

Without the kernel, XLA reads all slots of the cache for every token, even those that are still
empty. The kernel is written in Pallas for NVIDIA GPUs and compiled by Triton. Scores and softmax
are float32, as in `fused_attention`.

Legend: B batch, N heads, S slots of the cache, H head width.
"""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

#: The number of slots that are read at a time, and the number of warps that read them.
BLOCK, WARPS = 256, 8


@flax.struct.dataclass
class CacheSpan:
    """The attention pattern of one new token a row, which sees the slots starts..index.

    It asks for the kernel.

    Attributes:
        starts: the first slot that each row sees, int32 [B].
        index: the slot of the token itself, int32: one for all rows, or [B].
        interpret: whether the kernel is interpreted, which is slow but needs no GPU.
    """

    starts: Any
    index: Any
    interpret: bool = flax.struct.field(pytree_node=False, default=False)


def runs_cached_attention(head_width: int) -> bool:
    """Returns whether a single device that runs the fused kernel can also run this one.

    This holds for 16-bit numbers. The head width has to be a power of two, at least 16.
    """
    return head_width & (head_width - 1) == 0 and head_width >= 16


def cached_attention(
    queries: Float[Array, "B N 1 H"],
    keys: Float[Array, "B N S H"],
    values: Float[Array, "B N S H"],
    span: CacheSpan,
) -> Float[Array, "B 1 N H"]:
    """Computes softmax(Q K^T / sqrt H) V over the slots of `span`."""
    batch, heads, slots, width = keys.shape
    stops = jnp.broadcast_to(jnp.asarray(span.index + 1, jnp.int32), batch)

    def row(*block: int | None) -> pl.BlockSpec:
        return pl.BlockSpec((None, *block), lambda b, n: (b, n, *(0,) * (len(block) - 1)))

    scalar, cached = pl.BlockSpec((None,), lambda b, n: (b,)), row(None, slots, width)
    return pl.pallas_call(
        functools.partial(_kernel, scale=width**-0.5),
        grid=(batch, heads),
        in_specs=[scalar, scalar, row(None, width), cached, cached],
        out_specs=row(None, width),
        out_shape=jax.ShapeDtypeStruct((batch, heads, width), queries.dtype),
        interpret=span.interpret,
        **compiler_options(WARPS),
    )(span.starts.astype(jnp.int32), stops, queries[:, :, 0], keys, values)[:, None]


def compiler_options(num_warps: int, num_stages: int | None = None) -> dict[str, Any]:
    """Returns the arguments of `pallas_call` that tell Triton how to compile a kernel.

    Args:
        num_warps: the number of warps of a program, each of which is 32 threads.
        num_stages: the number of reads of a loop that overlap; None takes Triton's default.
    """
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=num_warps, num_stages=num_stages)}


def _kernel(
    start_ref: Any, stop_ref: Any, query_ref: Any, keys_ref: Any, values_ref: Any, out_ref: Any,
    *, scale: float
) -> None:  # fmt: skip
    """Computes one head of one row."""
    query = query_ref[...].astype(jnp.float32) * scale
    total, _, denominator = online_softmax(
        query, keys_ref, values_ref, start_ref[...], stop_ref[...]
    )
    out_ref[...] = (total / denominator).astype(out_ref.dtype)


def online_softmax(
    query: Float[Array, " H"],
    keys_ref: Any,
    values_ref: Any,
    start: Int[Array, ""],
    stop: Int[Array, ""],
) -> tuple[Float[Array, " H"], Float[Array, ""], Float[Array, ""]]:
    """Attends to the slots start..stop - 1 of one head; for use inside a kernel.

    It reads one block of slots after the other and keeps a running maximum of the scores (Milakov
    and Gimelshein 2018, "Online normalizer calculation for softmax").

    Args:
        query: the query of the head, already scaled.
        keys_ref: a reference to the keys [S, H].
        values_ref: a reference to the values [S, H].
        start: the first slot that the query sees.
        stop: the first slot after those that it sees.

    Returns:
        The sum of the values, each times exp(score - largest), the largest score, and the sum of
        these factors. All are float32. If the query sees no slot, both sums are 0.
    """
    from jax.experimental.pallas import triton

    def block(i: jax.Array, carry: tuple) -> tuple:
        total, largest, denominator = carry
        slots = i * BLOCK + jnp.arange(BLOCK)
        inside = (slots >= start) & (slots < stop)

        def read(ref: Any) -> jax.Array:
            at = ref.at[pl.ds(i * BLOCK, BLOCK), :]
            return triton.load(at, mask=inside[:, None], other=0.0).astype(jnp.float32)

        scores = jnp.where(inside, jnp.sum(read(keys_ref) * query[None, :], axis=1), -jnp.inf)
        new_largest = jnp.maximum(largest, jnp.max(scores))
        weights, correction = jnp.exp(scores - new_largest), jnp.exp(largest - new_largest)
        total = total * correction + jnp.sum(weights[:, None] * read(values_ref), axis=0)
        return total, new_largest, denominator * correction + jnp.sum(weights)

    empty = (jnp.zeros_like(query), jnp.finfo(jnp.float32).min, jnp.float32(0))
    return jax.lax.fori_loop(start // BLOCK, pl.cdiv(stop, BLOCK), block, empty)
