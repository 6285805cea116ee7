"""Codebooks that are parameters, learned by gradients through nearest codes.

Mode 1 of the CogView paper (arXiv 2105.13290, section 2.2): van den Oord et al. 2017, equation 3.
With both vectors and codes on the unit sphere it is LlamaGen's quantiser (Sun et al. 2024, arXiv
2406.06525, section 2.1; Yu et al. 2022), with the entropy loss of Yu et al. 2024 (arXiv 2310.05737,
section 3.1).

Legend: N vectors of a batch, b rows of a part of it, h w rows and columns of codes, K codes, D
width of a code.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cogview_jax.runtime.config import require_range
from cogview_jax.tokenizers.quantisers.quantiser import (
    CodebookTraining,
    Quantised,
    Quantiser,
    codebook_parameter,
    hits_of,
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

#: Added to a probability before its logarithm.
FLOOR = 1e-5


class Use(NamedTuple):
    """How the codes of a codebook are used: moving averages, float32.

    counts [K]: how many vectors of a batch each code wins. error: the squared distance between a
    vector and its code, a scalar; infinite before the first batch.
    """

    counts: jax.Array
    error: jax.Array


class BatchUse(NamedTuple):
    """How a batch uses the codes, as sums over its parts.

    hits [K]: how many vectors each code won. error: the sum of all squared distances.
    """

    hits: jax.Array
    error: jax.Array
    candidates: Candidates


@dataclass(frozen=True, kw_only=True)
class Learned(Quantiser):
    """Nearest codes; the codes follow gradients (mode 1).

    loss = codebook_weight |sg(z) - e|^2 + commitment |z - sg(e)|^2 + entropy_weight (mean entropy
    of a vector's code - entropy of the mean), the probabilities being softmax(-distance /
    entropy_temperature).

    Attributes:
        codebook_weight: of the squared distance that moves the codes. CompVis' released models
            were trained with 0.25, and a commitment of 1.
        entropy_weight: of the entropy loss, which spreads vectors over all codes; 0 for none.
        entropy_temperature: of the probabilities in the entropy loss.
    """

    State: ClassVar[type] = Use
    kind: Literal["learned"] = "learned"
    codebook_weight: float = 1.0
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01

    def __post_init__(self) -> None:
        require_range(self, "codebook_weight", "entropy_weight", at_least=0)
        require_range(self, "entropy_temperature", above=0)

    def remedies(self, training: CodebookTraining, width: int) -> list[str]:
        """Revival, the entropy loss, narrower codes, or other quantisers."""
        entropy = [] if self.entropy_weight else ["model.quantiser.entropy_weight = 0.1"]
        others = super().remedies(training, width)
        return [*revival(training), *entropy, *narrow(width), *others]

    def place(self, vectors: Float[Array | np.ndarray, "*N D"]) -> Float[Array, "*N D"]:
        """Vectors or codes where distances are measured: as they are."""
        return jnp.asarray(vectors, jnp.float32)

    def init(self, key: Key[Array, ""], codes: int, width: int) -> tuple[dict[str, Any], Use]:
        """The codes, and a state in which none was used yet."""
        params = {"codes": codebook_parameter(tanh_uniform(key, codes, width))}
        return params, Use(jnp.zeros(codes), jnp.float32(jnp.inf))

    def encode(
        self, params: Any, state: Use, vectors: Float[Array | np.ndarray, "*N D"]
    ) -> Int[Array, "*N"]:
        """The nearest codes."""
        return nearest(self.place(params["codes"]), self.place(vectors))

    def vectors(
        self, params: Any, state: Use, ids: Int[Array | np.ndarray, "*N"]
    ) -> Float[Array, "*N D"]:
        """Rows of the codebook."""
        return self.place(jnp.asarray(params["codes"])[ids])

    def batch_sums(self, params: Any, vectors: Float[Array, "b h w D"]) -> Any:
        """The probabilities of the codes, summed over all vectors, [K], if the entropy counts."""
        if not self.entropy_weight:
            return ()
        codes, z = self.place(params["codes"]), self.place(vectors)
        likelihoods = log_probabilities(codes, z, self.entropy_temperature)
        return jnp.sum(jnp.exp(likelihoods), axis=(0, 1, 2))

    def quantise(
        self,
        training: CodebookTraining,
        params: Any,
        state: Use,
        vectors: Float[Array, "b h w D"],
        rows: Int[Array | np.ndarray, " b"],
        batch: int,
        key: Key[Array, ""],
        whole: Any = None,
    ) -> Quantised:
        """Straight-through nearest codes, and the loss of both sides."""
        codes, z = self.place(params["codes"]), self.place(vectors)
        ids = nearest(jax.lax.stop_gradient(codes), jax.lax.stop_gradient(z))
        quantised, stop = codes[ids], jax.lax.stop_gradient
        codebook = jnp.mean((stop(z) - quantised) ** 2, axis=(1, 2, 3))
        commitment = jnp.mean((z - stop(quantised)) ** 2, axis=(1, 2, 3))
        loss = self.codebook_weight * codebook + training.commitment * commitment
        metrics = {"commitment": commitment}
        if self.entropy_weight:
            mean = None if whole is None else whole / (batch * ids[0].size)
            entropy = entropy_loss(codes, z, self.entropy_temperature, mean)
            loss += self.entropy_weight * entropy
            metrics["entropy"] = entropy
        fixed, here = stop(z), stop(codes)
        return Quantised(
            straight_through(z, quantised),
            loss,
            metrics,
            BatchUse(
                hits_of(ids, len(codes)),
                jnp.sum((fixed - here[ids]) ** 2),
                sample_candidates(key, here, fixed, ids, state.error, rows, batch),
            ),
        )

    def finish(
        self, training: CodebookTraining, params: Any, state: Use, aux: BatchUse
    ) -> tuple[Any, Use, dict[str, Array]]:
        """The codes, of which those that nobody uses moved, and the averages after the batch."""
        decay, vectors = training.decay, aux.hits.sum()
        counts = decay * state.counts + (1 - decay) * aux.hits
        error = moving_error(state.error, aux.error / vectors, decay)
        moves, weight = unused(counts, aux.candidates.worthwhile, vectors, training.revive_below)
        codes = jnp.where(moves[:, None], aux.candidates.vectors, params["codes"])
        counts = jnp.where(moves, weight, counts)
        metrics = use_metrics(counts, aux.hits) | {"revived": moves.sum()}
        return params | {"codes": codes}, Use(counts, error), metrics


@dataclass(frozen=True, kw_only=True)
class Cosine(Learned):
    """Nearest codes by angle: vectors and codes are on the unit sphere, and so is what is decoded.

    Stored codes have any length.
    """

    kind: Literal["cosine"] = "cosine"  # type: ignore[assignment]  # one kind of another
    entropy_weight: float = 0.1

    def place(self, vectors: Float[Array | np.ndarray, "*N D"]) -> Float[Array, "*N D"]:
        """Vectors or codes where distances are measured: x / max(|x|, 1e-12)."""
        vectors = jnp.asarray(vectors, jnp.float32)
        squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
        # The square root of 0 has no gradient.
        return vectors / jnp.sqrt(jnp.maximum(squares, 1e-24))


def log_probabilities(
    codes: Float[Array, "K D"], vectors: Float[Array, "b h w D"], temperature: float
) -> Float[Array, "b h w K"]:
    """log softmax(-squared distance / temperature) over the codes."""
    norms = jnp.sum(vectors**2, axis=-1, keepdims=True) + jnp.sum(codes**2, axis=1)
    return jax.nn.log_softmax((product(2 * vectors, codes.T) - norms) / temperature, axis=-1)


def entropy_loss(
    codes: Float[Array, "K D"],
    vectors: Float[Array, "b h w D"],
    temperature: float,
    mean: Float[Array, " K"] | None = None,
) -> Float[Array, " b"]:
    """Mean entropy of each row's vectors minus the entropy of the mean over all rows.

    It is small where every vector is sure of its code and all codes are used alike.

    Args:
        codes: in the space of `vectors`.
        vectors: of b rows.
        temperature: of the probabilities.
        mean: the probabilities' mean over the whole batch, of which these rows are a part; None
            where they are the whole batch. The gradient is then that of the whole batch's loss for
            these rows: that of the entropy of the mean, a function f, is f'(mean) times the
            gradient of each row's mean.
    """
    likelihoods = log_probabilities(codes, vectors, temperature)
    shares = jnp.exp(likelihoods)
    each = -jnp.mean(jnp.sum(shares * likelihoods, axis=-1), axis=(1, 2))
    if mean is None:
        mean = jnp.mean(shares, axis=(0, 1, 2))
        return each + jnp.sum(mean * jnp.log(mean + FLOOR))
    mean = jax.lax.stop_gradient(mean)
    slope = jnp.log(mean + FLOOR) + mean / (mean + FLOOR)
    rows = product(jnp.mean(shares, axis=(1, 2)), slope)
    return each + jnp.sum(mean * jnp.log(mean + FLOOR)) + rows - jax.lax.stop_gradient(rows)
