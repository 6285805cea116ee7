"""The moving-average vector quantiser: nearest codes, and a codebook that follows the encoder.

The codebook is no parameter: it is a running mean of the vectors assigned to each code (van den
Oord et al. 2017, appendix A.1; mode 3 of the CogView paper), so it comes in and goes out as a
value. Codes that nobody uses are moved onto vectors of the current batch that the codebook serves
badly, which is also how a fresh codebook gets its first values.

Every product here is taken in float32 at the highest precision. Accelerators round what they
multiply to bfloat16 or TF32 unless they are told otherwise, and codes that are nearly as near as
the nearest would win there: the codes of an image would depend on the machine.

Legend: N vectors of a batch, K codes, D width of a code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Codebook(NamedTuple):
    """The state of the quantiser, float32: codes [K, D], counts [K], sums [K, D], error scalar.

    `counts` and `sums` are exponential moving averages of how many vectors a batch assigned to each
    code and of their sum; `codes` is their smoothed quotient. `error` is the moving average of the
    squared distance between a vector and its code; infinite before the first batch.
    """

    codes: jax.Array
    counts: jax.Array
    sums: jax.Array
    error: jax.Array


class Relaxed(NamedTuple):
    """Vectors sampled through a relaxation (see `relax`).

    quantised [..., D]: what the decoder reads. ids int32 [...]: the code that won. kl: the mean
    over vectors of the Kullback-Leibler divergence of their codes from uniform, a scalar in nats.
    """

    quantised: jax.Array
    ids: jax.Array
    kl: jax.Array


class Assignments(NamedTuple):
    """What a batch tells the codebook, as sums over its vectors.

    hits [K]: how many vectors each code won. sums [K, D]: the sum of those. error: the sum of all
    squared distances to the codes, a scalar.
    """

    hits: jax.Array
    sums: jax.Array
    error: jax.Array


def initial_codebook(key: jax.Array, size: int, width: int) -> Codebook:
    """A codebook nobody has used yet: codes Xavier-uniform with the gain of tanh (5/3)."""
    bound = 5 / 3 * (6 / (size + width)) ** 0.5
    codes = jax.random.uniform(key, (size, width), jnp.float32, -bound, bound)
    return Codebook(codes, jnp.zeros(size), jnp.zeros((size, width)), jnp.float32(jnp.inf))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b at the highest precision of the device: [..., N], [N, M] -> [..., M]."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def nearest(codes: jax.Array, vectors: jax.Array) -> jax.Array:
    """Ids of the nearest codes: codes [K, D], vectors [..., D] -> int32 [...].

    Squared distance in its expanded form, without the vectors' own norm: it moves no minimum. It is
    computed in float32, whatever the types of both.
    """
    codes, vectors = jnp.asarray(codes, jnp.float32), jnp.asarray(vectors, jnp.float32)
    distances = jnp.sum(codes**2, axis=1) - _product(2 * vectors, codes.T)
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def straight_through(vectors: jax.Array, quantised: jax.Array) -> jax.Array:
    """`quantised` in the forward pass, the gradient of `vectors` in the backward pass."""
    return vectors + jax.lax.stop_gradient(quantised - vectors)


def relax(
    codes: jax.Array, vectors: jax.Array, noise: jax.Array, temperature: float, *, hard: bool
) -> Relaxed:
    """A sample of codes whose gradient reaches the vectors (Jang et al. 2017; the paper's mode 2).

    The logits of the codes are minus the squared distances, here with the vectors' own norm, which
    no softmax sees. With Gumbel noise the most likely code is a sample from their softmax, and
    softmax((logits + noise) / temperature) is its relaxation: one-hot as the temperature goes to 0,
    which is where a run anneals it.

    Args:
        codes: [K, D].
        vectors: [..., D].
        noise: [..., K], standard Gumbel (`jax.random.gumbel`).
        temperature: above 0.
        hard: the code that won in the forward pass, and the relaxation's gradient; otherwise the
            mean of the codes under the relaxation. The release moves the codebook (`update`, with
            these ids) in the hard form only.

    Returns:
        The quantised vectors, the ids, and the divergence of the softmax without noise at
        temperature 1.
    """
    codes, vectors = jnp.asarray(codes, jnp.float32), jnp.asarray(vectors, jnp.float32)
    norms = jnp.sum(vectors**2, axis=-1, keepdims=True)
    logits = _product(2 * vectors, codes.T) - norms - jnp.sum(codes**2, axis=1)
    noisy = logits + noise
    ids = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
    shares = jax.nn.softmax(noisy / temperature, axis=-1)
    if hard:
        shares = straight_through(shares, jax.nn.one_hot(ids, codes.shape[0], dtype=shares.dtype))
    likelihoods = jax.nn.log_softmax(logits, axis=-1)
    divergence = jnp.sum(jnp.exp(likelihoods) * likelihoods, axis=-1) + jnp.log(codes.shape[0])
    return Relaxed(_product(shares, codes), ids, jnp.mean(divergence))


def assign(codes: jax.Array, vectors: jax.Array, ids: jax.Array) -> Assignments:
    """Counts and sums of vectors [N, D] by the ids [N] of their codes [K, D]."""
    hits = jax.nn.one_hot(ids, codes.shape[0], dtype=vectors.dtype)
    return Assignments(hits.sum(0), _product(hits.T, vectors), jnp.sum((vectors - codes[ids]) ** 2))


def update(codebook: Codebook, batch: Assignments, decay: float, epsilon: float = 1e-5) -> Codebook:
    """The codebook after a batch.

    codes = sums / smoothed counts, smoothed = (count + eps) / (total + K eps) total, so that an
    unused code is not divided by zero.
    """
    size = codebook.counts.shape[0]
    counts = decay * codebook.counts + (1 - decay) * batch.hits
    sums = decay * codebook.sums + (1 - decay) * batch.sums
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + size * epsilon) * total
    error = batch.error / batch.hits.sum()
    error = jnp.where(
        jnp.isinf(codebook.error), error, decay * codebook.error + (1 - decay) * error
    )
    return Codebook(sums / smoothed[:, None], counts, sums, error)


def revive(
    codebook: Codebook,
    candidates: jax.Array,
    worthwhile: jax.Array,
    vectors: jax.Array,
    threshold: float,
) -> tuple[Codebook, jax.Array]:
    """Moves every code used less than `threshold` of its fair share onto its candidate.

    A moved code starts at twice the threshold: light, so that the vectors it wins decide where it
    goes.

    Args:
        codebook: after `update`.
        candidates: [K, D], a random vector of the batch for each code.
        worthwhile: [K], whether the candidate is farther from its present code than the average:
            codes go where they are missed, and not into the crowd, such as plain background.
        vectors: N, how many vectors the batch had; the fair share of a code is N / K.
        threshold: the share below which a code counts as unused.

    Returns:
        The codebook, and how many codes moved.
    """
    share = vectors / codebook.counts.shape[0]
    moves = (codebook.counts < threshold * share) & worthwhile
    weight = 2 * threshold * share
    moved = codebook._replace(
        codes=jnp.where(moves[:, None], candidates, codebook.codes),
        counts=jnp.where(moves, weight, codebook.counts),
        sums=jnp.where(moves[:, None], candidates * weight, codebook.sums),
    )
    return moved, moves.sum()
