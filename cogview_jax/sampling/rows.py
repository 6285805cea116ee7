"""Rows of one cache, each at its own place in a sequence of its own: what the device does.

Legend: R rows, L requests at work, S slots of the cache, C tokens of one step.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cogview_jax.models.linear import matvec_parts, matvec_product, split_for_cores
from cogview_jax.models.transformer import Cache, Transformer, cached_forward
from cogview_jax.runtime.random_key import GENERATOR
from cogview_jax.sampling.decode import Sequences
from cogview_jax.sampling.filters import RowSettings, guided, sample_token


class Rows(NamedTuple):
    """What the device holds of all rows.

    token: int32 [R], the last token of each, which the cache does not hold yet. cache_mask: bool
    [R, S]. cache: see `empty_cache`. keys: uint32 [R, 2], the data of the random key of each.
    """

    token: jax.Array
    cache_mask: jax.Array
    cache: Cache
    keys: jax.Array


class Places(NamedTuple):
    """Where each row stands, which the host knows.

    position: int32 [R], of `Rows.token` among the learned positions. slot: int32 [R], of it in the
    cache. sampled: int32 [R], how many tokens were sampled, below 0 while they are given. given:
    int32 [R, C], tokens that are known already; -1 is sampled.
    """

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

        old, new, without = (
            (each.token, each.cache_mask, each.cache) for each in (rows, prompts, bare)
        )
        token, mask, cache = jax.tree.map(given, old, new, without)
        return Rows(token, mask, cache, rows.keys.at[row].set(admission.keys[i]))

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
    table = params["word_embedding"][first:last].astype(model.policy.compute)
    parts = matvec_parts(size, model.programs.platform)
    params, head = split_for_cores(params, parts), jnp.array_split(table, parts)
    some = jax.tree.map(lambda leaf: leaf[:size], rows)
    roots = jax.random.wrap_key_data(some.keys, impl=GENERATOR)

    def step(
        carry: tuple[jax.Array, Cache], now: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, Cache], jax.Array]:
        (token, cache), (i, given) = carry, now
        hidden, cache = cached_forward(
            model,
            params,
            token[:, None],
            (places.position + i)[:, None],
            some.cache_mask,
            cache,
            places.slot + i,
        )
        logits = matvec_product(hidden[:, -1], head, jnp.float32)
        keys = jax.vmap(jax.random.fold_in)(roots, places.sampled + i)
        with_text, without = logits[lanes.text], logits[lanes.bare]
        chosen = sample_token(
            guided(with_text, without, lanes.settings.guidance), keys[lanes.text], lanes.settings
        )
        token = jnp.where(given < 0, first + chosen[lanes.of_row], given)
        return (token, cache), token

    count = places.given.shape[1]
    steps = (jnp.arange(count), jnp.asarray(places.given).T)
    (token, cache), tokens = jax.lax.scan(step, (some.token, some.cache), steps)
    done = some._replace(token=token, cache=cache)
    rows = jax.tree.map(lambda old, new: old.at[:size].set(new), rows, done)
    return rows, tokens.T
