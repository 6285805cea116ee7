"""Filters on logits: which tokens may be drawn, and how sharply.

All take float logits [..., V] and return them in float32 with what is excluded at -inf. The order
in sampling is that of the release: temperature, top-k, top-p. Logits of fewer bits are widened
first: sums of their probabilities, and the noise of a draw, need float32.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from cogview_jax.runtime.errors import InputError

#: Below this temperature the largest logit is taken off before the division, which could overflow.
#: At others it is left, for the sum of a logit and its noise would round otherwise.
SHARP = 1e-3
#: Beyond this guidance the difference it multiplies could overflow.
MOST_GUIDANCE = 1e6


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn from its distribution.

    temperature: logits are divided by it; 0 takes the likeliest token. top_k: only the k likeliest
    tokens, 0 for all. top_p: only the likeliest tokens that together reach this probability, 1 for
    all. guidance: how strongly a text is followed, see `guided`; 1 is as the model has it, another
    computes twice as many rows. The defaults are the release's.
    """

    temperature: float = 1.0
    top_k: int = 200
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature {self.temperature}: expected 0 (greedy) or above")
        if self.top_k < 0:
            raise InputError(f"top_k {self.top_k}: expected 0 (all tokens) or above")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: expected above 0 and at most 1 (all tokens)")
        if not 0 <= self.guidance <= MOST_GUIDANCE:
            raise InputError(
                f"guidance {self.guidance}: expected 0 (no text) to {MOST_GUIDANCE:.0f}"
            )

    def need_no_guidance(self, what: str) -> None:
        """InputError where there is guidance, for `what` knows no text to leave out."""
        if self.guidance != 1:
            raise InputError(f"guidance {self.guidance}: {what} has none, leave it at 1")


def guided(logits: jax.Array, guidance: float) -> jax.Array:
    """Classifier-free guidance: logits [2B, V] -> [B, V], away from what comes without the text.

    The first half of the rows has seen the text, the second has not: u + guidance (c - u) (Ho and
    Salimans 2022; on the logits of tokens, Gafni et al. 2022).
    """
    with_text, without = jnp.split(logits.astype(jnp.float32), 2)
    return without + guidance * (with_text - without)


def tempered(logits: jax.Array, temperature: float) -> jax.Array:
    """Logits divided by a temperature above 0, however small: the largest stays finite."""
    logits = logits.astype(jnp.float32)
    if temperature < SHARP:
        logits -= jnp.max(logits, axis=-1, keepdims=True)
        # What is smaller than any normal number counts as 0 on most devices.
        temperature = max(temperature, float(jnp.finfo(jnp.float32).tiny))
    return logits / temperature


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Excludes what is below the k-th largest logit; all that equal it stay."""
    logits = logits.astype(jnp.float32)
    if not 0 < k < logits.shape[-1]:
        return logits
    # The barrier keeps the indices, and the cut to the smallest for later: where less is asked for
    # XLA's CPU backend sorts all logits. Swapped, since XLA aborts where it finds a barrier right
    # behind a top-k of logits that are split over devices.
    largest, indices = jax.lax.top_k(logits, k)
    _, largest = jax.lax.optimization_barrier((indices, largest))
    smallest = largest[..., -1:]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Excludes all but the likeliest tokens whose probabilities first reach p together.

    Nucleus sampling (Holtzman et al. 2020). The likeliest token always stays, and so does all that
    is as likely as the last one kept.
    """
    logits = logits.astype(jnp.float32)
    if p >= 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    shares = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    # Of a p that is 0 in float32 nothing is below.
    smallest = jnp.min(jnp.where(before < p, ordered, ordered[..., :1]), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)


def draw(logits: jax.Array, keys: jax.Array, config: SamplingConfig) -> jax.Array:
    """One token a row: logits [B, V], typed keys [B] -> int32 [B]; a row's draw is its own."""
    if config.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = keep_top_k(tempered(logits, config.temperature), config.top_k)
    logits = keep_top_p(logits, config.top_p)

    def one(key: jax.Array, logits: jax.Array) -> jax.Array:
        # The mode is named, or a setting of jax would choose it.
        return jax.random.categorical(key, logits, mode="low")

    return jax.vmap(one)(keys, logits).astype(jnp.int32)
