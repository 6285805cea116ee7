"""Dropout with random bits that cost only a few instructions each.

The random bits of dropout only have to look independent. `jax.random` draws them from a cipher, at
about a hundred instructions each, which on a CPU makes dropping attention weights ten times as slow
(docs/experiments/2026-11-26_training_4b_h200.md). Here bit i of a mask is a hash of i and the key,
so the mask is the same on every mesh, number of devices and backend.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32


def dropout(
    x: Float[Array | np.ndarray, "*B"],
    rate: float,
    key: Key[Array, ""],
    *,
    whole: tuple[int, ...] | None = None,
    start: tuple[int, ...] | None = None,
) -> Float[Array, "*B"]:
    """Sets a share `rate` of the numbers to 0 and divides the others by 1 - rate.

    Args:
        x: the numbers. The first axis may have any length; the others may hold up to 2^32 numbers
            together.
        rate: the share of numbers that are dropped, at least 0 and below 1.
        key: a typed key. The key and the shape of `x` alone decide which numbers are dropped.
        whole: the shape of the array that `x` is a part of, if it is one: of it the same numbers
            are dropped as from the whole.
        start: where in the whole the part begins.
    """
    if rate == 0:
        return jnp.asarray(x)
    bits = hashed_bits(key, x.shape, whole, start)
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, jnp.asarray(x) / jnp.asarray(1 - rate, x.dtype), 0)


def hashed_bits(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    whole: tuple[int, ...] | None = None,
    start: tuple[int, ...] | None = None,
) -> UInt32[Array, "..."]:
    """Returns an array of `shape` in which each number is a hash of its index and the key.

    If it is a part of an array of the shape `whole`, which begins at `start`, indices are those in
    the whole.

    The hash is two rounds of the finaliser of MurmurHash3 (Appleby 2011), and each round first
    takes in one word of the key. After a single round the masks of all keys would be permutations
    of one another.
    """
    first, second = jax.random.bits(key, (2,))
    whole, start = whole or shape, start or (0,) * len(shape)
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(1, len(shape))):
        own = jax.lax.broadcasted_iota(jnp.uint32, shape, axis) + jnp.uint32(start[axis])
        index += own * jnp.uint32(stride)
        stride *= whole[axis]
    row = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) + jnp.uint32(start[0])
    # The factor is odd, so no two of 2^32 rows get the same multiple.
    row *= jnp.uint32(0x9E3779B1)
    return _mix(_mix(index ^ first) + row + second)


def _mix(x: UInt32[Array, "*B"]) -> UInt32[Array, "*B"]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
