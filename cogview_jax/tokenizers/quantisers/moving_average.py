"""The moving-average quantiser: nearest codes, and a codebook that follows the encoder.

Mode 3 of the CogView paper, the one it uses (arXiv 2105.13290, section 2.2; van den Oord et al.
2017, appendix A.1). The codebook is no parameter: it is a running mean of the vectors assigned to
each code, so it comes in and goes out as a value. Mode 4 leaves it as it was initialised.

Legend: N vectors of a batch, K codes, D width of a code.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from cogview_jax.tokenizers.quantisers.quantiser import (
    CodebookTraining,
    Quantised,
    Quantiser,
    narrow,
    nearest,
    product,
    revival,
    straight_through,
    tanh_uniform,
    use_metrics,
)
from cogview_jax.tokenizers.quantisers.revival import (
    Candidates,
    moving_error,
    sample_candidates,
    unused,
)


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


class Assignments(NamedTuple):
    """What a batch tells the codebook, as sums over its vectors.

    hits [K]: how many vectors each code won. sums [K, D]: the sum of those. error: the sum of all
    squared distances to the codes, a scalar.
    """

    hits: jax.Array
    sums: jax.Array
    error: jax.Array


class BatchVectors(NamedTuple):
    """What the codebook learns from a batch, as sums over the parts of the batch."""

    assigned: Assignments
    candidates: Candidates


@dataclass(frozen=True, kw_only=True)
class MovingAverage(Quantiser):
    """Nearest codes; each code is a moving average of the vectors it wins (mode 3)."""

    State: ClassVar[type] = Codebook
    kind: Literal["moving_average"] = "moving_average"

    def remedies(self, training: CodebookTraining, width: int) -> list[str]:
        """Revival, narrower codes, or other quantisers."""
        return [*revival(training), *narrow(width), *super().remedies(training, width)]

    def init(self, key: Key[Array, ""], codes: int, width: int) -> tuple[dict[str, Any], Codebook]:
        """No parameters, and an unused codebook."""
        return {}, initial_codebook(key, codes, width)

    def encode(
        self, params: Any, state: Codebook, vectors: Float[Array | np.ndarray, "*N D"]
    ) -> Int[Array, "*N"]:
        """The nearest codes."""
        return nearest(state.codes, vectors)

    def vectors(
        self, params: Any, state: Codebook, ids: Int[Array | np.ndarray, "*N"]
    ) -> Float[Array, "*N D"]:
        """Rows of the codebook."""
        return jnp.asarray(state.codes)[ids]

    def quantise(
        self,
        training: CodebookTraining,
        params: Any,
        state: Codebook,
        vectors: Float[Array, "b h w D"],
        rows: Int[Array | np.ndarray, " b"],
        batch: int,
        key: Key[Array, ""],
        whole: Any = None,
    ) -> Quantised:
        """Straight-through nearest codes, and the commitment of the encoder to them."""
        ids = nearest(state.codes, vectors)
        quantised = state.codes[ids]
        commitment = jnp.mean((vectors - quantised) ** 2, axis=(1, 2, 3))
        fixed = jax.lax.stop_gradient(vectors)
        flat = fixed.reshape(-1, fixed.shape[-1])
        return Quantised(
            straight_through(vectors, quantised),
            training.commitment * commitment,
            {"commitment": commitment},
            BatchVectors(
                assign(state.codes, flat, ids.reshape(-1)),
                sample_candidates(key, state.codes, fixed, ids, state.error, rows, batch),
            ),
        )

    def finish(
        self,
        training: CodebookTraining,
        params: Any,
        state: Codebook,
        aux: BatchVectors,
    ) -> tuple[Any, Codebook, dict[str, Array]]:
        """The codebook after the batch.

        Metrics are those of `use_metrics`, and revived: how many codes were moved.
        """
        hits = aux.assigned.hits
        codebook, revived = revive(
            update(state, aux.assigned, training.decay),
            aux.candidates,
            hits.sum(),
            training.revive_below,
        )
        return params, codebook, use_metrics(codebook.counts, hits) | {"revived": revived}


@dataclass(frozen=True, kw_only=True)
class Fixed(MovingAverage):
    """Nearest codes of a codebook that stays as it was initialised (mode 4)."""

    kind: Literal["fixed"] = "fixed"  # type: ignore[assignment]  # one kind of another

    def remedies(self, training: CodebookTraining, width: int) -> list[str]:
        """Other quantisers, or narrower codes: these do not move."""
        return ["model.quantiser.kind moving_average, cosine or fsq", *narrow(width)]

    def finish(
        self,
        training: CodebookTraining,
        params: Any,
        state: Codebook,
        aux: BatchVectors,
    ) -> tuple[Any, Codebook, dict[str, Array]]:
        """The codes as they were; the averages go on, for the metrics."""
        after = update(state, aux.assigned, training.decay)._replace(codes=state.codes)
        return params, after, use_metrics(after.counts, aux.assigned.hits)


def initial_codebook(key: Key[Array, ""], codes: int, width: int) -> Codebook:
    """A codebook nobody has used yet."""
    unused_codes = tanh_uniform(key, codes, width)
    return Codebook(unused_codes, jnp.zeros(codes), jnp.zeros((codes, width)), jnp.float32(jnp.inf))


def assign(
    codes: Float[Array | np.ndarray, "K D"],
    vectors: Float[Array | np.ndarray, "N D"],
    ids: Int[Array | np.ndarray, " N"],
) -> Assignments:
    """Counts and sums of vectors [N, D] by the ids [N] of their codes [K, D]."""
    codes, vectors = jnp.asarray(codes), jnp.asarray(vectors)
    hits = jax.nn.one_hot(ids, codes.shape[0], dtype=vectors.dtype)
    return Assignments(hits.sum(0), product(hits.T, vectors), jnp.sum((vectors - codes[ids]) ** 2))


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
    error = moving_error(codebook.error, batch.error / batch.hits.sum(), decay)
    return Codebook(sums / smoothed[:, None], counts, sums, error)


def revive(
    codebook: Codebook, candidates: Candidates, vectors: ArrayLike, threshold: float
) -> tuple[Codebook, Any]:
    """Moves every code used less than `threshold` of its fair share onto its candidate.

    Args:
        codebook: after `update`.
        candidates: of the whole batch.
        vectors: N, how many vectors the batch had.
        threshold: the share below which a code counts as unused.

    Returns:
        The codebook, and how many codes moved.
    """
    moves, weight = unused(codebook.counts, candidates.worthwhile, jnp.asarray(vectors), threshold)
    moved = codebook._replace(
        codes=jnp.where(moves[:, None], candidates.vectors, codebook.codes),
        counts=jnp.where(moves, weight, codebook.counts),
        sums=jnp.where(moves[:, None], candidates.vectors * weight, codebook.sums),
    )
    return moved, moves.sum()
