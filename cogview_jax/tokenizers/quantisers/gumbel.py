"""Quantisers that sample codes through a Gumbel softmax whose temperature falls during training.

Jang et al. 2017 (arXiv 1611.01144). `gumbel` is mode 2 of the CogView paper (arXiv 2105.13290,
section 2.2): the logits of the codes are minus the squared distances. `gumbel_projection` is that
of DALL-E and of CompVis' GumbelVQ: the logits are a linear map of the encoder's vectors.

Legend: b rows of a part of a batch, h w rows and columns of codes, K codes, D width of a code.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
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
    nearest,
    product,
    straight_through,
    tanh_uniform,
    use_metrics,
)


class Annealing(NamedTuple):
    """The state of a quantiser that samples.

    counts [K]: moving averages of how many vectors of a batch each code wins, float32. steps: how
    many steps were taken, an int32 scalar, which the temperature follows.
    """

    counts: jax.Array
    steps: jax.Array


class Relaxed(NamedTuple):
    """Vectors sampled through a relaxation (see `relax`).

    quantised [..., D]: what the decoder reads. ids int32 [...]: the code that won. kl [...]: the
    Kullback-Leibler divergence of each vector's codes from uniform, in nats.
    """

    quantised: jax.Array
    ids: jax.Array
    kl: jax.Array


@dataclass(frozen=True, kw_only=True)
class Gumbel(Quantiser):
    """Codes are sampled, the nearer the likelier; images are encoded by the nearest (mode 2).

    Attributes:
        temperature: of the first step.
        last_temperature: of step `anneal_steps` and all later ones; between them it falls by half
            a period of a cosine.
        anneal_steps: how many steps the fall takes.
        kl_weight: of the divergence of the codes from uniform in the loss.
        hard: whether the decoder reads the sampled code, with the relaxation's gradient, or the
            mean of the codes under the relaxation.
    """

    State: ClassVar[type] = Annealing
    kind: Literal["gumbel"] = "gumbel"
    temperature: float = 0.9
    last_temperature: float = 0.05
    anneal_steps: int = 10_000
    kl_weight: float = 1e-8
    hard: bool = False

    def __post_init__(self) -> None:
        require_range(self, "temperature", "last_temperature", above=0)
        require_range(self, "anneal_steps", at_least=1)
        require_range(self, "kl_weight", at_least=0)

    def remedies(self, training: CodebookTraining, width: int) -> list[str]:
        """A larger weight of the divergence from uniform, or other quantisers."""
        return [
            f"model.quantiser.kl_weight above {self.kl_weight:g}",
            *super().remedies(training, width),
        ]

    def logits(
        self, params: Any, vectors: Float[Array | np.ndarray, "*N D"]
    ) -> Float[Array, "*N K"]:
        """Minus the squared distances to the codes."""
        return distance_logits(params["codes"], vectors)

    def temperature_at(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The temperature of a step, counted from 0."""
        done = jnp.minimum(jnp.asarray(step) / self.anneal_steps, 1.0)
        share = (1 + jnp.cos(math.pi * done)) / 2
        return self.last_temperature + (self.temperature - self.last_temperature) * share

    def init(self, key: Key[Array, ""], codes: int, width: int) -> tuple[dict[str, Any], Annealing]:
        """The codes, and the state before step 0."""
        params = {"codes": codebook_parameter(tanh_uniform(key, codes, width))}
        return params, Annealing(jnp.zeros(codes), jnp.int32(0))

    def encode(
        self, params: Any, state: Annealing, vectors: Float[Array | np.ndarray, "*N D"]
    ) -> Int[Array, "*N"]:
        """The nearest codes, which are the likeliest."""
        return nearest(params["codes"], vectors)

    def vectors(
        self, params: Any, state: Annealing, ids: Int[Array | np.ndarray, "*N"]
    ) -> Float[Array, "*N D"]:
        """Rows of the codebook."""
        return jnp.asarray(params["codes"], jnp.float32)[ids]

    def quantise(
        self,
        training: CodebookTraining,
        params: Any,
        state: Annealing,
        vectors: Float[Array, "b h w D"],
        rows: Int[Array | np.ndarray, " b"],
        batch: int,
        key: Key[Array, ""],
        whole: Any = None,
    ) -> Quantised:
        """Sampled codes, each row with noise of its own, and their divergence from uniform."""
        logits = self.logits(params, vectors)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
        noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:]))(keys)
        temperature = self.temperature_at(state.steps)
        sampled = relax(logits, params["codes"], noise, temperature, hard=self.hard)
        kl = jnp.mean(sampled.kl, axis=(1, 2))
        return Quantised(
            sampled.quantised,
            self.kl_weight * kl,
            {"kl": kl, "temperature": jnp.full(len(kl), temperature)},
            hits_of(sampled.ids, logits.shape[-1]),
        )

    def finish(
        self, training: CodebookTraining, params: Any, state: Annealing, aux: Any
    ) -> tuple[Any, Annealing, dict[str, Array]]:
        """The parameters as they are, and the state of the next step."""
        counts = training.decay * state.counts + (1 - training.decay) * aux
        return params, Annealing(counts, state.steps + 1), use_metrics(counts, aux)


@dataclass(frozen=True, kw_only=True)
class GumbelProjection(Gumbel):
    """Codes are sampled from logits that a linear map makes of the encoder's vectors.

    Images are encoded by the largest logit, without noise.
    """

    kind: Literal["gumbel_projection"] = "gumbel_projection"  # type: ignore[assignment]  # one kind of another

    def logits(
        self, params: Any, vectors: Float[Array | np.ndarray, "*N D"]
    ) -> Float[Array, "*N K"]:
        """vectors @ kernel + bias."""
        kernel, bias = (jnp.asarray(params[name], jnp.float32) for name in ("kernel", "bias"))
        return product(jnp.asarray(vectors, jnp.float32), kernel) + bias

    def init(self, key: Key[Array, ""], codes: int, width: int) -> tuple[dict[str, Any], Annealing]:
        """The codes and the map, and the state before step 0."""
        params, state = super().init(key, codes, width)
        kernel = nn.initializers.lecun_normal()(jax.random.fold_in(key, 1), (width, codes))
        params["kernel"] = nn.LogicallyPartitioned(kernel, ("code_width", "codes"))
        params["bias"] = nn.LogicallyPartitioned(jnp.zeros(codes), ("codes",))
        return params, state

    def encode(
        self, params: Any, state: Annealing, vectors: Float[Array | np.ndarray, "*N D"]
    ) -> Int[Array, "*N"]:
        """The codes of the largest logits."""
        return jnp.argmax(self.logits(params, vectors), axis=-1).astype(jnp.int32)


def distance_logits(
    codes: Float[Array | np.ndarray, "K D"], vectors: Float[Array | np.ndarray, "*N D"]
) -> Float[Array, "*N K"]:
    """Minus the squared distances of vectors [..., D] to codes [K, D]."""
    codes, vectors = jnp.asarray(codes, jnp.float32), jnp.asarray(vectors, jnp.float32)
    norms = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return product(2 * vectors, codes.T) - norms - jnp.sum(codes**2, axis=1)


def relax(
    logits: Float[Array | np.ndarray, "*N K"],
    codes: Float[Array | np.ndarray, "K D"],
    noise: Float[Array | np.ndarray, "*N K"],
    temperature: Float[Array, ""] | float,
    *,
    hard: bool,
) -> Relaxed:
    """Samples codes so that gradients reach the logits.

    With Gumbel noise the largest logit is a sample from their softmax, and
    softmax((logits + noise) / temperature) is its relaxation: one-hot as the temperature goes to 0,
    which is where a run anneals it.

    Args:
        logits: [..., K].
        codes: [K, D].
        noise: [..., K], standard Gumbel (`jax.random.gumbel`).
        temperature: above 0.
        hard: the code that won in the forward pass, and the relaxation's gradient; otherwise the
            mean of the codes under the relaxation.

    Returns:
        The quantised vectors, the ids, and the divergence of the softmax without noise at
        temperature 1.
    """
    logits, codes = jnp.asarray(logits), jnp.asarray(codes, jnp.float32)
    noisy = logits + noise
    ids = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
    shares = jax.nn.softmax(noisy / temperature, axis=-1)
    if hard:
        shares = straight_through(shares, jax.nn.one_hot(ids, codes.shape[0], dtype=shares.dtype))
    likelihoods = jax.nn.log_softmax(logits, axis=-1)
    divergence = jnp.sum(jnp.exp(likelihoods) * likelihoods, axis=-1) + jnp.log(codes.shape[0])
    return Relaxed(product(shares, codes), ids, divergence)
