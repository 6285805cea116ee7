"""The cross-entropy of tokens over a large vocabulary, whose logits are never all in memory.

The logits of a row of 1,088 tokens over 58,240 ids take 253 MB in float32. Here those of a part of
the positions are computed, and their gradient at once, so that nothing of them is kept for the
backward pass and nothing is computed twice.

Legend: B rows, T positions, D width, V vocabulary, C positions of a part.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cogview_jax.models.linear import matmul

#: Logits that are in memory at a time, about: 128 MiB of float32.
LOGITS = 1 << 25
#: The exponent of two that gradients of logits have at most in float16, which ends at 2^16.
_LARGEST = 15


def weighted_cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array | np.ndarray, "B T"],
    weights: Float[Array | np.ndarray, "B T"],
    *,
    platform: str = "cpu",
    logits: int | None = LOGITS,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """The weighted sum of the cross-entropies of all targets, and each of them.

    Only the sum has a gradient, with respect to `hidden` and `table`.

    Args:
        hidden: the states after the final norm, in the type of the products.
        table: the embeddings of all ids, in the same type.
        targets: an id for each position.
        weights: of each position in the sum.
        platform: see `models.linear.matmul`.
        logits: how many are computed at a time, about; None for all.
    """
    positions = targets.size
    size = positions if logits is None else max(1, logits // table.shape[0])
    return _weighted(
        hidden,
        table,
        jnp.asarray(targets),
        jnp.asarray(weights, jnp.float32),
        -(-positions // size),
        platform,
    )


def cross_entropy(
    logits: Float[Array | np.ndarray, "*shape V"], targets: Int[Array | np.ndarray, "*shape"]
) -> Float[Array, "*shape"]:
    """-log softmax(logits)[target]."""
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    picked = jnp.sum(jnp.where(_one_hot(shifted, targets), shifted, 0), axis=-1)
    return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - picked


def _one_hot(logits: Any, targets: Any) -> jax.Array:
    """Where the target is: a comparison fuses with what follows, an index would not."""
    return jnp.arange(logits.shape[-1]) == targets[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _weighted(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    parts: int,
    platform: str,
) -> tuple[jax.Array, jax.Array]:
    def entropies(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        own, wanted = part
        return None, cross_entropy(matmul(own, table.T, jnp.float32, platform), wanted)

    _, found = _over_parts(entropies, None, (hidden, targets), parts)
    return jnp.sum(found * weights), found


def _forward(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    parts: int,
    platform: str,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """The result, and the gradients of the sum, which are multiplied by the last number."""
    gain = _gain(weights, hidden.dtype)

    def both(
        dtable: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        own, wanted, weight = part
        logits = matmul(own, table.T, jnp.float32, platform)
        probabilities = jax.nn.softmax(logits)
        dlogits = (probabilities - _one_hot(logits, wanted)) * (weight * gain)[..., None]
        dlogits = dlogits.astype(own.dtype)
        dhidden = matmul(dlogits, table, jnp.float32, platform)
        axes = tuple(range(own.ndim - 1))
        # XLA's CPU backend transposes the first operand in memory. It would be the narrower one the
        # other way round, but then the sum, which is larger than both, has to be transposed.
        dtable += jax.lax.dot_general(
            dlogits, own, ((axes, axes), ((), ())), preferred_element_type=jnp.float32
        )
        return dtable, (cross_entropy(logits, wanted), dhidden)

    start = jnp.zeros(table.shape, jnp.float32)
    dtable, (found, dhidden) = _over_parts(both, start, (hidden, targets, weights), parts)
    return (jnp.sum(found * weights), found), (dhidden, dtable, hidden, table, gain)


def _gain(weights: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """A power of two for gradients of logits, so that float16 holds them.

    Probabilities of a large vocabulary are below its smallest number, and weights may be above its
    largest. The loss scale, which keeps other gradients in its range, comes only afterwards.
    """
    if dtype != jnp.float16:
        return jnp.ones((), jnp.float32)
    _, exponent = jnp.frexp(jnp.max(jnp.abs(weights)))
    return jnp.ldexp(jnp.float32(1), _LARGEST - jnp.clip(exponent, -100, 100))


def _backward(
    parts: int, platform: str, saved: tuple[jax.Array, ...], upstream: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, None]:
    dhidden, dtable, hidden, table, gain = saved
    scale = upstream[0] / gain
    return (
        (dhidden * scale).astype(hidden.dtype),
        (dtable * scale).astype(table.dtype),
        None,
        None,
    )


_weighted.defvjp(_forward, _backward)


def _over_parts(step: Any, carry: Any, arrays: tuple[jax.Array, ...], parts: int) -> Any:
    """`jax.lax.scan` over parts of the positions; one part keeps its axes, which may be sharded."""
    if parts == 1:
        return step(carry, arrays)
    rows = arrays[0].shape[:2]
    count = rows[0] * rows[1]
    size = -(-count // parts)

    def divided(x: jax.Array) -> jax.Array:
        x = x.reshape(count, *x.shape[2:])
        x = jnp.pad(x, ((0, size * parts - count), *[(0, 0)] * (x.ndim - 1)))
        return x.reshape(parts, size, *x.shape[1:])

    def joined(x: jax.Array) -> jax.Array:
        x = x.reshape(size * parts, *x.shape[2:])[:count]
        return x.reshape(*rows, *x.shape[1:])

    carry, found = jax.lax.scan(step, carry, tuple(divided(x) for x in arrays))
    return carry, jax.tree.map(joined, found)
