"""Dropout whose bits cost a few instructions a number.

The random bits of dropout need no more than to look independent. `jax.random` has them from a
cipher, at some hundred instructions each; on a CPU the weights of attention then take ten times as
long to drop (docs/experiments/2026-11-26_training_4b_h200.md). Here bit i of a mask is a hash of i
and the key: the same on any mesh and any number of devices, and on every backend.
"""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """`x` with a share `rate` of its numbers set to 0 and the others divided by 1 - rate.

    key: a typed key, which alone decides with the shape of `x` what is dropped; the first axis of x
    may have any length, the others together up to 2^32 places.
    """
    if rate == 0:
        return x
    bits = hashed_bits(key, x.shape)
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)


def hashed_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 of `shape`, each a hash of its place and the key.

    Two rounds of the finaliser of MurmurHash3 (Appleby 2011), with a word of the key before each:
    one round alone would make the masks of all keys permutations of one another.
    """
    first, second = jax.random.bits(key, (2,))
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(1, len(shape))):
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    # Multiples of an odd number: no two of 2^32 rows share one.
    row = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) * jnp.uint32(0x9E3779B1)
    return _mixed(_mixed(place ^ first) + row + second)


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
