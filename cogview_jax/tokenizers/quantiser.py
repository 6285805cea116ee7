"""The moving-average vector quantiser: nearest codes, and a codebook that follows the encoder.

The codebook is no parameter: it is a running mean of the vectors assigned to each code (van den Oord et al. 2017,
appendix A.1; mode 3 of the CogView paper), so it comes in and goes out as a value. Codes that nobody uses
are moved onto vectors of the current batch, which is also how a fresh codebook gets its first values.

Legend: N vectors of a batch, K codes, D width of a code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Codebook(NamedTuple):
    """The state of the quantiser, float32: codes [K, D], counts [K], sums [K, D].

    `counts` and `sums` are exponential moving averages of how many vectors a batch assigned to each code and of
    their sum; `codes` is their smoothed quotient.
    """

    codes: jax.Array
    counts: jax.Array
    sums: jax.Array


def initial_codebook(key: jax.Array, size: int, width: int) -> Codebook:
    """A codebook nobody has used yet: codes Xavier-uniform with the gain of tanh (5/3), counts zero."""
    bound = 5 / 3 * (6 / (size + width)) ** 0.5
    codes = jax.random.uniform(key, (size, width), jnp.float32, -bound, bound)
    return Codebook(codes, jnp.zeros(size), jnp.zeros((size, width)))


def nearest(codes: jax.Array, vectors: jax.Array) -> jax.Array:
    """Ids of the nearest codes: codes [K, D], vectors [..., D] -> int32 [...].

    Squared distance in its expanded form; the vectors' own norm is left out, as it moves no minimum.
    """
    distances = jnp.sum(codes**2, axis=1) - 2 * vectors @ codes.T
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def straight_through(vectors: jax.Array, quantised: jax.Array) -> jax.Array:
    """`quantised` in the forward pass, the gradient of `vectors` in the backward pass."""
    return vectors + jax.lax.stop_gradient(quantised - vectors)


def assignments(vectors: jax.Array, ids: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """How many vectors each of `size` codes won, [K], and their sum, [K, D]: vectors [N, D], ids [N]."""
    hits = jax.nn.one_hot(ids, size, dtype=vectors.dtype)
    return hits.sum(0), hits.T @ vectors


def update(
    codebook: Codebook, hits: jax.Array, sums: jax.Array, decay: float, epsilon: float = 1e-5
) -> Codebook:
    """The codebook after a batch with these `assignments`.

    codes = sums / smoothed counts, smoothed = (count + eps) / (total + K eps) total, so that an unused code is not
    divided by zero.
    """
    size = codebook.counts.shape[0]
    counts = decay * codebook.counts + (1 - decay) * hits
    sums = decay * codebook.sums + (1 - decay) * sums
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + size * epsilon) * total
    return Codebook(sums / smoothed[:, None], counts, sums)


def revive(
    codebook: Codebook, candidates: jax.Array, vectors: jax.Array | int, threshold: float
) -> tuple[Codebook, jax.Array]:
    """Moves every code used less than `threshold` of its fair share onto its candidate.

    candidates [K, D]: random vectors of a batch of `vectors`; the fair share of a code is vectors / K. Returns the codebook and how
    many codes moved. A moved code starts at twice the threshold: light, so that the vectors it wins decide where it
    goes.
    """
    share = vectors / codebook.counts.shape[0]
    dead = codebook.counts < threshold * share
    weight = 2 * threshold * share
    moved = Codebook(
        jnp.where(dead[:, None], candidates, codebook.codes),
        jnp.where(dead, weight, codebook.counts),
        jnp.where(dead[:, None], candidates * weight, codebook.sums),
    )
    return moved, dead.sum()
