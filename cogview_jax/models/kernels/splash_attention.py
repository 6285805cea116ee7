"""Causal attention as one kernel for TPUs, which never writes its scores to memory.

The kernel is the splash attention that jax ships: flash attention (Dao 2023, arXiv 2307.08691)
that leaves out the blocks of a mask in which no query sees a key. It is written in Pallas and
compiled by Mosaic. It has a backward pass of its own, which computes the scores again.

PB-relax (arXiv 2105.13290, equation 4) needs nothing here. Dividing the scores by alpha, taking off
their maximum and multiplying with alpha is the softmax of the scores themselves; it only keeps
scores and exponents within the range of float16. The kernel holds scores in float32, which has room
for them, and takes off the running maximum of a query before each exponential.

Legend: B batch, T positions, N heads, H head width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cogview_jax.models.remat import ATTENTION_OUTPUT
from cogview_jax.runtime.sharding import map_shards

#: The most queries or keys of a block, and the number of lanes, of which a block has a multiple.
BLOCK, LANES = 512, 128


def splash_attention(
    queries: Float[Array, "B N T H"],
    keys: Float[Array, "B N T H"],
    values: Float[Array, "B N T H"],
    *,
    interpret: bool = False,
) -> Float[Array, "B N T H"]:
    """Computes softmax(Q K^T / sqrt H) V, where a query sees its own position and earlier.

    Under a mesh each device attends in its own rows and heads.

    Args:
        queries: the queries, in bfloat16 or float32.
        keys: the keys.
        values: the values.
        interpret: whether operations of XLA compute the same function, on any device.
    """

    def attend(*parts: jax.Array) -> jax.Array:
        heads, length = parts[0].shape[1:3]
        block = _block(length)
        # No query sees the padding at the end.
        padding = ((0, 0), (0, 0), (0, -length % block), (0, 0))
        padded = [jnp.pad(part, padding) for part in parts]
        kernel = _kernel(heads, padded[0].shape[2], block, interpret)
        return jax.vmap(kernel)(*padded)[:, :, :length]

    # The kernel multiplies queries and keys as they are given.
    queries = queries / jnp.asarray(queries.shape[-1] ** 0.5, queries.dtype)
    return map_shards(attend, ("batch", "heads", None, None), queries, keys, values)


def _block(length: int) -> int:
    """The size of the fewest equal blocks that hold `length` positions, in whole lanes."""
    blocks = -(-length // BLOCK)
    return -(-length // (blocks * LANES)) * LANES


def _kernel(heads: int, length: int, block: int, interpret: bool) -> Any:
    """The kernel of one row: queries, keys and values [N, T, H] to the output."""
    # Importing it takes a while, and CPUs and GPUs never need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_OUTPUT,
        interpret=interpret,
    )
