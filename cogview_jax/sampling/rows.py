"""Rows of one cache, each at its own place in a sequence of its own: what the device does.

Legend: R rows, L requests at work, S slots of the cache, C tokens of one step, W places of a
window.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cogview_jax.models.linear import matvec_product
from cogview_jax.models.transformer import Cache, Transformer, cached_forward
from cogview_jax.runtime.random_key import GENERATOR
from cogview_jax.sampling.decode import Sequences, split_weights
from cogview_jax.sampling.filters import RowSettings, guided, sample_token


class Rows(NamedTuple):
    """What the device holds of all rows.

    cache_mask: bool [R, S]. cache: see `empty_cache`. keys: uint32 [R, 2], the data of the random
    key of each.
    """

    cache_mask: jax.Array
    cache: Cache
    keys: jax.Array


class Places(NamedTuple):
    """Where each row stands, which the host knows.

    token: int32 [R], the last token of each, which the cache does not hold yet; int32 [R, W] in
    windows, where guesses follow it. position: int32 [R], of that token among the learned
    positions. slot: int32 [R], of it in the cache. sampled: int32 [R], how many tokens were
    sampled, below 0 while they are given. given: int32 [R, C or W], tokens that are known already;
    -1 is sampled.
    """

    token: Any
    position: Any
    slot: Any
    sampled: Any
    given: Any


class Lanes(NamedTuple):
    """The requests at work: one with guidance has two rows, others one.

    text, bare: int32 [L], the rows with and without the text; the same for those without guidance.
    of_row: int32 [R], the request of each row. settings: of each request.
    """

    text: Any
    bare: Any
    of_row: Any
    settings: RowSettings


class Admission(NamedTuple):
    """Which rows get which prompt, N of them.

    row: int32 [N]. prompt: int32 [N], which of the prompts; -1 is the one without a text. keys:
    uint32 [N, 2]. count: int32, how many of these there are; those behind mean nothing.
    """

    row: Any
    prompt: Any
    keys: Any
    count: Any


@functools.partial(jax.jit, donate_argnames="rows")
def admit(rows: Rows, prompts: Sequences, bare: Sequences, admission: Admission) -> Rows:
    """Gives prompts to rows.

    Args:
        rows: all rows; they are used up, their cache is written in place.
        prompts: from `prefill`.
        bare: the prompt without a text, also from `prefill`.
        admission: which row gets which.
    """

    def one(i: jax.Array, rows: Rows) -> Rows:
        row, which = admission.row[i], admission.prompt[i]

        def given(leaf: jax.Array, several: jax.Array, single: jax.Array) -> jax.Array:
            value = jnp.where(which < 0, single[0], several[jnp.maximum(which, 0)])
            return leaf.at[row].set(value)

        old, new, without = ((each.cache_mask, each.cache) for each in (rows, prompts, bare))
        mask, cache = jax.tree.map(given, old, new, without)
        return Rows(mask, cache, rows.keys.at[row].set(admission.keys[i]))

    admission = jax.tree.map(jnp.asarray, admission)
    return jax.lax.fori_loop(0, admission.count, one, rows)


@functools.partial(
    jax.jit, static_argnames=("model", "first", "last", "size"), donate_argnames="rows"
)
def advance(
    params: Mapping[str, Any],
    rows: Rows,
    places: Places,
    lanes: Lanes,
    *,
    model: Transformer,
    first: int,
    last: int,
    size: int,
) -> tuple[Rows, jax.Array]:
    """The first `size` rows C tokens further, and those tokens: int32 [size, C].

    Args:
        params: as of `decode.in_parts`.
        rows: all rows; they are used up, their cache is written in place.
        places: of the first `size` rows.
        lanes: the requests of these rows.
        model: the transformer of `params`.
        first: the first id that may be sampled.
        last: one past the last id that may be sampled.
        size: how many rows are computed.
    """
    sample, some = _sampler(params, rows, lanes, model=model, first=first, last=last, size=size)

    def step(
        carry: tuple[jax.Array, Cache], now: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, Cache], jax.Array]:
        (token, cache), (i, given) = carry, now
        here = Places(
            token[:, None], places.position + i, places.slot + i, places.sampled + i, given[:, None]
        )
        cache, sampled = sample(cache, here)
        return (sampled[:, 0], cache), sampled[:, 0]

    count = places.given.shape[1]
    steps = (jnp.arange(count), jnp.asarray(places.given).T)
    (_, cache), tokens = jax.lax.scan(step, (jnp.asarray(places.token), some.cache), steps)
    return _written(rows, cache), tokens.T


@functools.partial(
    jax.jit, static_argnames=("model", "first", "last", "size"), donate_argnames="rows"
)
def window_pass(
    params: Mapping[str, Any],
    rows: Rows,
    places: Places,
    lanes: Lanes,
    *,
    model: Transformer,
    first: int,
    last: int,
    size: int,
) -> tuple[Rows, jax.Array]:
    """One pass over windows: what is sampled behind each of the W tokens, int32 [size, W].

    It is right up to the first wrong guess (`sampling.parallel`). The slots of the cache behind
    that are written again by later passes. For the arguments see `advance`.
    """
    sample, some = _sampler(params, rows, lanes, model=model, first=first, last=last, size=size)
    cache, tokens = sample(some.cache, jax.tree.map(jnp.asarray, places))
    return _written(rows, cache), tokens


def _sampler(
    params: Mapping[str, Any],
    rows: Rows,
    lanes: Lanes,
    *,
    model: Transformer,
    first: int,
    last: int,
    size: int,
) -> tuple[Callable[[Cache, Places], tuple[Cache, jax.Array]], Rows]:
    """A function that samples behind the W tokens of some places, and the first `size` rows.

    See `advance` for the arguments. What the function returns is the cache and int32 [size, W].
    """
    params, head = split_weights(params, size, model=model, first=first, last=last)
    some = jax.tree.map(lambda leaf: leaf[:size], rows)
    roots = jax.random.wrap_key_data(some.keys, impl=GENERATOR)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))

    def sample(cache: Cache, places: Places) -> tuple[Cache, jax.Array]:
        width = places.token.shape[1]
        ahead = jnp.arange(width)
        hidden, cache = cached_forward(
            model,
            params,
            places.token,
            places.position[:, None] + ahead,
            some.cache_mask,
            cache,
            places.slot,
        )
        logits = matvec_product(hidden, head, jnp.float32)
        keys = fold(roots, places.sampled[:, None] + ahead)[lanes.text].reshape(-1)
        own = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), width), lanes.settings)
        with_text, without = (
            logits[each].reshape(len(keys), -1) for each in (lanes.text, lanes.bare)
        )
        chosen = sample_token(guided(with_text, without, own.guidance), keys, own)
        chosen = chosen.reshape(-1, width)[lanes.of_row]
        return cache, jnp.where(places.given < 0, first + chosen, places.given)

    return sample, some


def _written(rows: Rows, cache: Cache) -> Rows:
    """All rows, of which the first have a new cache."""

    def over(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[: len(new)].set(new)

    return rows._replace(cache=jax.tree.map(over, rows.cache, cache))
