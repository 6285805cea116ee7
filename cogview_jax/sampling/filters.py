"""From logits to tokens: temperature, top-k, top-p and guidance, each a value a row.

All settings are arrays, so requests of different settings share a batch and no new value compiles
anything. Legend: B rows, V tokens. Filters take float logits [..., V] with settings [...] or a
single number, and return float32 with what is excluded at -inf. The order is that of the CogView
release: temperature, top-k, top-p. Logits of fewer bits are widened first: sums of their
probabilities, and the noise of sampling, need float32.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from cogview_jax.runtime.sharding import constrain
from cogview_jax.sampling.options import SamplingConfig

#: Below this temperature the largest logit is subtracted before the division, which could overflow.
#: At others it is left, for the sum of a logit and its noise would round otherwise.
SHARP = 1e-3
#: Above this temperature all logits are alike, and the reciprocal of a larger one could be 0.
FLAT = 1e30


class RowSettings(NamedTuple):
    """`SamplingConfig` as arrays, one value a row.

    scale: float32 [B], 1 / temperature. sharp, greedy: bool [B], the temperature is below `SHARP`,
    or 0. top_k: int32 [B]. top_p, guidance: float32 [B].
    """

    scale: ArrayLike
    sharp: ArrayLike
    greedy: ArrayLike
    top_k: ArrayLike
    top_p: ArrayLike
    guidance: ArrayLike


def row_settings(configs: Sequence[SamplingConfig]) -> RowSettings:
    """The settings of each row, as arrays that a jitted function takes."""
    return settings_of(
        np.array([min(config.temperature, FLAT) for config in configs], np.float32),
        np.array([min(config.top_k, 2**31 - 1) for config in configs], np.int32),
        np.array([config.top_p for config in configs], np.float32),
        np.array([config.guidance for config in configs], np.float32),
    )


def settings_of(temperature: Any, top_k: Any, top_p: Any, guidance: Any) -> RowSettings:
    """The settings of rows with these values, arrays of numpy or jax: float32 [B], top_k int32."""
    # Numbers smaller than any normal one count as 0 on most devices. XLA divides by a constant
    # by multiplying with its reciprocal; so does this, which keeps the bits of both the same.
    scale = 1 / temperature.clip(min=np.finfo(np.float32).tiny)
    return RowSettings(scale, temperature < SHARP, temperature == 0, top_k, top_p, guidance)


def guided(
    conditional: Float[Array, "B V"], unconditional: Float[Array, "B V"], guidance: ArrayLike
) -> Float[Array, "B V"]:
    """Classifier-free guidance: logits moved away from those that come without the text.

    u + guidance (c - u) (Ho and Salimans 2022; on the logits of tokens, Gafni et al. 2022). Rows of
    guidance 1 are `conditional` itself.
    """
    with_text, without = conditional.astype(jnp.float32), unconditional.astype(jnp.float32)
    guidance = _rows(guidance, with_text)[..., None]
    return jnp.where(guidance == 1, with_text, without + guidance * (with_text - without))


def scaled(
    logits: Float[Array, "*B V"], scale: ArrayLike, sharp: ArrayLike
) -> Float[Array, "*B V"]:
    """Logits divided by a temperature, however small: the largest stays finite."""
    logits = logits.astype(jnp.float32)
    lowered = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = jnp.where(_rows(sharp, logits)[..., None], lowered, logits)
    return logits * _rows(scale, logits)[..., None]


@jax.jit
def keep_top_k(logits: Float[Array, "*B V"], k: ArrayLike) -> Float[Array, "*B V"]:
    """Excludes what is below the k-th largest logit; all that equal it stay. 0 keeps all."""
    logits = logits.astype(jnp.float32)
    size = logits.shape[-1]
    k = _rows(k, logits)
    k = jnp.where((k > 0) & (k < size), k, size)

    def kept() -> jax.Array:
        order = _ordered(logits)

        def above(threshold: jax.Array) -> jax.Array:
            return jnp.sum(order >= threshold[..., None], axis=-1, dtype=jnp.int32) >= k

        return jnp.where(order < _largest(above, k.shape)[..., None], -jnp.inf, logits)

    return jax.lax.cond(jnp.any(k < size), kept, lambda: logits)


@jax.jit
def keep_top_p(logits: Float[Array, "*B V"], p: ArrayLike) -> Float[Array, "*B V"]:
    """Excludes all but the most likely tokens whose probabilities first reach p together.

    Nucleus sampling (Holtzman et al. 2020): a token stays where the mass of all that are more
    likely is below p. The most likely token always stays, and so does all that equals the last one
    kept.
    """
    logits = logits.astype(jnp.float32)
    p = _rows(p, logits).astype(jnp.float32)

    def kept() -> jax.Array:
        order, shares = _ordered(logits), jax.nn.softmax(logits, axis=-1)

        def reached(threshold: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(order > threshold[..., None], shares, 0), axis=-1) >= p

        # Of a p that is 0 in float32 even the largest would go.
        below = jnp.minimum(_largest(reached, p.shape), jnp.max(order, axis=-1) - 1)
        some = jnp.where(order <= below[..., None], -jnp.inf, logits)
        return jnp.where((p < 1)[..., None], some, logits)

    return jax.lax.cond(jnp.any(p < 1), kept, lambda: logits)


@jax.jit
def filtered(logits: Float[Array, "*B V"], settings: RowSettings) -> Float[Array, "*B V"]:
    """Logits of the distribution that tokens are sampled from, by temperature, top-k and top-p."""
    logits = scaled(logits, settings.scale, settings.sharp)
    return keep_top_p(keep_top_k(logits, settings.top_k), settings.top_p)


@jax.jit
def sample_token(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], settings: RowSettings
) -> Int[Array, " B"]:
    """One token a row; a row's token depends on its own logits, key and settings alone."""
    # The filters count over all tokens many times: where the mesh splits them, they are gathered
    # once instead.
    logits = constrain(logits, "batch", None)
    greedy: Bool[Array, " B"] = jnp.asarray(settings.greedy)
    most_likely = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def one(key: jax.Array, row: jax.Array) -> jax.Array:
        # The mode is named, or a setting of jax would choose it.
        return jax.random.categorical(key, row, mode="low")

    def sampled() -> jax.Array:
        tokens = jax.vmap(one)(keys, filtered(logits, settings)).astype(jnp.int32)
        return jnp.where(greedy, most_likely, tokens)

    return jax.lax.cond(jnp.all(greedy), lambda: most_likely, sampled)


def _rows(setting: ArrayLike, logits: jax.Array) -> jax.Array:
    """A setting with the rows of `logits`."""
    return jnp.broadcast_to(jnp.asarray(setting), logits.shape[:-1])


def _ordered(values: jax.Array) -> jax.Array:
    """uint32 that are ordered as the float32 `values` are; the zeros are equal."""
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.int32)
    ordered = jnp.where(bits < 0, ~bits, bits ^ jnp.int32(-(2**31)))
    return jax.lax.bitcast_convert_type(ordered, jnp.uint32)


def _largest(holds: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The largest uint32 a row that a condition holds for, which holds for all that are smaller.

    Found bit by bit. To sort the logits instead takes ten times as long or more.
    """

    def refine(i: jax.Array, found: jax.Array) -> jax.Array:
        longer = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(holds(longer), longer, found)

    return jax.lax.fori_loop(0, 32, refine, jnp.zeros(shape, jnp.uint32))
