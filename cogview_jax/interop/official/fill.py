"""Fills the gaps of a sequence as the sampler of the release does.

A query is a row of ids in which -N stands for a token that is sampled for N samples at once. Given
tokens are taken as they are. When the number of samples changes, only the most likely sample is
kept. Text-to-image sampling is `sampling.decode.generate`; this module serves every other pattern
of given and sampled tokens.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.interop.official.positions import sampling_positions
from cogview_jax.models.pivots import draw_pivot_slots
from cogview_jax.models.transformer import Cache, Transformer, cached_forward, empty_cache
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.random_key import random_key
from cogview_jax.sampling import filters
from cogview_jax.sampling.decode import seed_key
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary, token_ids

#: The most samples of a query: each takes a cache of its own.
SAMPLES = 1024


@dataclass(frozen=True)
class FillStep:
    """One token of a query that is sampled.

    place: its index. fed: the index of the first token that the model is fed in this step.
    samples: N. first, last: the ids that may be sampled, [first, last).
    """

    place: int
    fed: int
    samples: int
    first: int
    last: int


def fill_steps(query: Sequence[int] | np.ndarray, vocabulary: Vocabulary) -> list[FillStep]:
    """The steps of a query, in order. The given commands decide which ids may be sampled.

    At first these are all ids but image codes; after [BOI1] or [BOI2] image codes; after [EOI1] or
    [EOI2] text. Sampled tokens and other commands change nothing.
    """
    image = (0, vocabulary.codes)
    ranges = {vocabulary.command(name): image for name in ("BOI1", "BOI2")}
    text = (vocabulary.text_start, vocabulary.commands_start)
    ranges |= {vocabulary.command(name): text for name in ("EOI1", "EOI2")}
    possible, fed, steps = (vocabulary.codes, vocabulary.size), 0, []
    for place, token in enumerate(query):
        if token < 0:
            steps.append(FillStep(place, fed, -int(token), *possible))
            fed = place
        possible = ranges.get(int(token), possible)
    return steps


def filtered(logits: jax.Array, config: SamplingConfig, first: int, last: int) -> jax.Array:
    """The distribution a token is drawn from: float [B, V] -> [B, V], 0 outside [first, last)."""
    inside = logits[:, first:last]
    if config.temperature == 0:
        inside = filters.keep_top_k(inside, 1)
    settings = filters.row_settings([config] * len(inside))
    shares = jax.nn.softmax(filters.filtered(inside, settings), axis=-1)
    return jnp.pad(shares, ((0, 0), (first, logits.shape[1] - last)))


#: Chooses a token for each of N samples: (float [rows, V], N) -> int [N]. There are N rows, or one
#: for all, where the samples part.
Choose = Callable[[np.ndarray, int], np.ndarray]


def seeded_choice(seed: int) -> Choose:
    """Draws by the given shares, reproducibly; InputError for a seed of more than 32 bits."""
    root, numbers = seed_key(seed), itertools.count()

    def choose(shares: np.ndarray, samples: int) -> np.ndarray:
        key = jax.random.fold_in(root, next(numbers))
        logits = jnp.log(jnp.asarray(shares, jnp.float32))
        logits = jnp.broadcast_to(logits, (samples, shares.shape[1]))
        return np.asarray(jax.random.categorical(key, logits, mode="low"))

    return choose


def fill(
    model: Transformer,
    params: Mapping[str, Any],
    query: Sequence[int] | np.ndarray,
    vocabulary: Vocabulary,
    config: SamplingConfig,
    choose: Choose,
) -> np.ndarray:
    """The query with its gaps filled: int32 [samples, length].

    Args:
        model: the transformer of `params`.
        params: from `unstack_layers`.
        query: ids, -N where a token is to be drawn for N samples. Positions restart at [ROI2] as
            the release's sampler has them.
        vocabulary: of the ids.
        config: temperature and filters.
        choose: see `Choose`.

    Raises:
        InputError: the query begins with a gap, is longer than the learned positions, or asks for
            too many samples; `config` has guidance.
    """
    config.need_no_guidance("a query")
    row = token_ids(query, "a query")
    steps = fill_steps(row, vocabulary)
    if (most := max((step.samples for step in steps), default=0)) > SAMPLES:
        raise InputError(f"a query with {most} samples of a token: expected at most {SAMPLES}")
    positions = np.concatenate([*sampling_positions(row, vocabulary), [0]])
    if positions.max() >= model.positions:
        raise InputError(
            f"a query of {len(row)} tokens reaches position {positions.max()}; the model has"
            f" {model.positions}"
        )
    rows, scores = row[None].copy(), np.zeros(1)
    cache = empty_cache(model, 1, len(row), _pivots(model, row, steps))
    for step in steps:
        if len(rows) > 1 and (step.samples != len(rows) or step.place - step.fed > 1):
            best = int(np.argmax(scores))
            rows, scores = rows[best : best + 1], np.zeros(1)
            cache = _rows(cache, np.array([best]))
        fed = slice(step.fed, step.place)
        at = np.broadcast_to(positions[fed], rows[:, fed].shape)
        logits, cache = _advance(params, rows[:, fed], at, cache, step.fed, model=model)
        shares = np.asarray(filtered(logits, config, step.first, step.last))
        chosen = choose(shares, step.samples)
        if len(rows) < step.samples:
            spread = np.zeros(step.samples, int)
            rows, scores, shares = rows[spread], scores[spread], shares[spread]
            cache = _rows(cache, spread)
        rows[:, step.place] = chosen
        scores = scores + np.log(shares[np.arange(len(rows)), chosen])
    if row[-1] >= 0 and len(rows) > 1:
        rows = rows[[int(np.argmax(scores))]]
    return rows


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _advance(
    params: Mapping[str, Any],
    tokens: jax.Array,
    positions: jax.Array,
    cache: Cache,
    index: jax.Array | int,
    *,
    model: Transformer,
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after tokens [B, T], and the cache with them."""
    visible = jnp.ones((tokens.shape[0], cache[0].keys.shape[2]), bool)
    hidden, cache = cached_forward(model, params, tokens, positions, visible, cache, index)
    logits = model.apply({"params": params}, hidden[:, -1], method=model.logits)
    return cast(jax.Array, logits), cache


def _pivots(model: Transformer, query: np.ndarray, steps: Sequence[FillStep]) -> jax.Array | None:
    """The slots of sparse attention's pivots, always the same for a query; None if it is dense."""
    if not model.config.sparse:
        return None
    kinds = query.copy()
    for step in steps:
        kinds[step.place] = step.first  # a token of the kind that will be drawn
    valid, key = jnp.ones((1, len(query)), bool), random_key(0)
    return draw_pivot_slots(
        model.config, model.vocabulary, jnp.asarray(kinds[None]), valid, key[None]
    )


def _rows(cache: Cache, index: np.ndarray) -> Cache:
    return jax.tree.map(lambda leaf: leaf[index], cache)
