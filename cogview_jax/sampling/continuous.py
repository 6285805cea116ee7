"""Continuous batching: rows of one cache, each at its own place in a sequence of its own.

A batch of `engine.Engine` begins and ends together. Here a row is given to the next request as soon
as its own is finished or given up. A row's tokens are those that `Engine` samples for the request:
its prompt fills the same slots of its cache, and its random numbers are the same.

Legend: R rows, L requests at work, S slots of the cache, C tokens of one step.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.models.linear import matvec_parts, matvec_product, split_for_cores
from cogview_jax.models.transformer import Cache, Transformer, cached_forward
from cogview_jax.runtime.mesh import to_host
from cogview_jax.runtime.random_key import GENERATOR
from cogview_jax.sampling.decode import OPEN, Sequences, prefill, sample_keys
from cogview_jax.sampling.engine import Engine, SamplingRequest, Span
from cogview_jax.sampling.filters import RowSettings, guided, row_settings, sample_token
from cogview_jax.tokenizers.layout import left_padded

#: Requests that begin together; so many prompts are computed at once, or one alone.
TOGETHER = 8
#: The fewest rows that are computed, and how many times more the next larger program has.
FEWEST, STEP = 2, 4


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


@functools.partial(jax.jit, donate_argnames="rows")
def admit(
    rows: Rows,
    row: jax.Array | int,
    sequences: Sequences,
    which: jax.Array | int,
    key: jax.Array | np.ndarray,
) -> Rows:
    """Gives a row to prompt number `which` of those from `prefill`; key is uint32 [2]."""
    new = (sequences.token, sequences.cache_mask, sequences.cache)
    old = (rows.token, rows.cache_mask, rows.cache)
    token, mask, cache = jax.tree.map(lambda leaf, one: leaf.at[row].set(one[which]), old, new)
    return Rows(token, mask, cache, rows.keys.at[row].set(key))


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


@dataclass(frozen=True)
class _Work:
    """A request at work.

    rows: with its text, and without it where there is guidance. prompt: how many tokens its prompt
    has, without padding. given: int32 [span.count], see `Places`. skipped: how many of the first
    are given. done: how many tokens it has.
    """

    request: SamplingRequest
    rows: tuple[int, ...]
    prompt: int
    given: np.ndarray
    skipped: int
    done: int = 0

    @classmethod
    def of(
        cls,
        request: SamplingRequest,
        rows: tuple[int, ...],
        prompt: int,
        given: np.ndarray | None,
        span: Span,
    ) -> "_Work":
        """One that begins."""
        given = np.full(span.count, OPEN, np.int32) if given is None else given
        skipped = int(np.argmax(given < 0)) if (given < 0).any() else len(given)
        return cls(request, rows, prompt, given, skipped)


class ContinuousBatch:
    """Requests that are sampled together, whenever each began.

    Not for use by several threads at once. After an error of the device nothing of it is left:
    `clear` makes it usable again.
    """

    def __init__(self, engine: Engine, rows: int, step: int):
        """Takes the memory of the cache.

        Args:
            engine: whose requests these are, of images.
            rows: how many there are, a power of two of at least `FEWEST`.
            step: tokens that are sampled of each request at a time; images have a multiple of it.
        """
        self.engine, self.span, self.step = engine, Span.of_image(engine.layout), step
        self.rows, sizes = rows, [rows]
        while sizes[0] // STEP >= FEWEST:
            sizes.insert(0, sizes[0] // STEP)
        self.sizes = sizes
        self._bare = engine.layout.tokens({"text": []})
        self.clear()

    @property
    def work(self) -> list[int]:
        """The numbers of the requests at work."""
        return list(self._work)

    @property
    def used(self) -> int:
        """How many rows are at work."""
        return sum(len(work.rows) for work in self._work.values())

    def clear(self) -> None:
        """Gives up all requests and begins with an empty cache."""
        self._work: dict[int, _Work] = {}
        self._number = 0
        self._rows: Rows | None = None  # frees memory first
        bare = self._without_text = self._prefilled([self._bare], sample_keys(0, [""], [0]))

        def every(leaf: jax.Array) -> jax.Array:
            return jnp.repeat(leaf, self.rows, axis=0)

        self._rows = Rows(
            every(bare.token),
            every(bare.cache_mask),
            jax.tree.map(every, bare.cache),
            jnp.zeros((self.rows, *jax.random.key_data(bare.keys).shape[1:]), jnp.uint32),
        )

    def compile(self) -> None:
        """Compiles every program that requests will run. There may be none at work."""
        assert not self._work, "only before the first request"
        for count in (1, 2):
            requests = [SamplingRequest("", index=i) for i in range(count)]
            # Prompts that differ, as far as ids of text go.
            self._work.clear()
            self.add(requests, [np.append(self._bare, i).astype(np.int32) for i in range(count)])
        self.remove(self.work[1])  # one request fits every program
        for size in self.sizes:
            for lanes in {max(1, size // 2), size}:
                self._step(size, lanes)
        self._work.clear()

    @staticmethod
    def rows_of(request: SamplingRequest) -> int:
        """How many rows a request takes."""
        return 2 if request.sampling.guidance != 1 else 1

    def fits(self, request: SamplingRequest) -> bool:
        """Whether there are rows left for a request."""
        return self.used + self.rows_of(request) <= self.rows

    def add(
        self,
        requests: Sequence[SamplingRequest],
        prompts: Sequence[np.ndarray],
        given: Sequence[np.ndarray | None] | None = None,
    ) -> list[int]:
        """Begins to sample.

        Args:
            requests: which fit together.
            prompts: the tokens that each continues, int32 [at most the prompt length].
            given: for each int32 [codes of an image], which of them are known already, and -1 where
                they are sampled; None where none is known. Those before the first open one count as
                the prompt, as `Engine` has it.

        Returns:
            The numbers of the requests.
        """
        assert self.used + sum(map(self.rows_of, requests)) <= self.rows, "ask first"
        given = [None] * len(requests) if given is None else given
        numbers = []
        for start in range(0, len(requests), TOGETHER):
            part = slice(start, start + TOGETHER)
            numbers += self._add(requests[part], prompts[part], given[part])
        return numbers

    def _add(
        self,
        requests: Sequence[SamplingRequest],
        prompts: Sequence[np.ndarray],
        given: Sequence[np.ndarray | None],
    ) -> list[int]:
        """The same, of at most TOGETHER requests."""
        taken = {row for work in self._work.values() for row in work.rows}
        free = (row for row in range(self.rows) if row not in taken)
        # As many as ever, or the number would be compiled.
        padded = [*requests, *[requests[0]] * (TOGETHER - len(requests))]
        keys = sample_keys(
            [request.seed for request in padded],
            [request.prompt for request in padded],
            [request.index for request in padded],
        )
        data, sparse = to_host(jax.random.key_data(keys)), self.engine.model.config.sparse
        # Rows that continue the same prompt share its cache, unless each has pivots of its own.
        shared: dict[tuple[bytes, int], list[tuple[int, int]]] = {}
        tokens_of: dict[tuple[bytes, int], np.ndarray] = {}
        numbers = []
        for i, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            rows = tuple(itertools.islice(free, self.rows_of(request)))
            for row, tokens in zip(rows, (prompt, self._bare), strict=False):
                name = (tokens.tobytes(), i if sparse else 0)
                shared.setdefault(name, []).append((row, i))
                tokens_of[name] = tokens
            self._number += 1
            numbers.append(self._number)
            self._work[self._number] = _Work.of(request, rows, len(prompt), given[i], self.span)
        own = [name for name in shared if sparse or name[0] != self._bare.tobytes()]
        for row, i in shared.get((self._bare.tobytes(), 0), []) if not sparse else []:
            self._rows = admit(self._state(), row, self._without_text, 0, data[i])
        size = 1 if len(own) == 1 else TOGETHER
        for start in range(0, len(own), size):
            names = own[start : start + size]
            filled = [*names, *[names[0]] * (size - len(names))]
            which = np.array([shared[name][0][1] for name in filled])
            one = self._prefilled([tokens_of[name] for name in filled], keys[which])
            for place, name in enumerate(names):
                for row, i in shared[name]:
                    self._rows = admit(self._state(), row, one, place, data[i])
        return numbers

    def remove(self, number: int) -> None:
        """Gives a request up, if it is at work; its rows are free."""
        self._work.pop(number, None)

    def advance(self) -> dict[int, np.ndarray]:
        """Samples `step` more tokens of every request: int32 [step] by number.

        Requests that have all their tokens are no longer at work.
        """
        if not self._work:
            return {}
        highest = max(row for work in self._work.values() for row in work.rows)
        size = next(size for size in self.sizes if size > highest)
        half = max(1, size // 2)
        tokens = self._step(size, half if len(self._work) <= half else size)
        found = {}
        for number, work in list(self._work.items()):
            found[number] = tokens[work.rows[0]]
            self._work[number] = replace(work, done=work.done + self.step)
            if self._work[number].done >= self.span.count:
                del self._work[number]
        return found

    def _state(self) -> Rows:
        assert self._rows is not None, "there is one but within clear()"
        return self._rows

    def _step(self, size: int, count: int) -> np.ndarray:
        """The tokens of a program of `size` rows and `count` requests: int32 [size, step]."""
        # Rows without work compute too; what they write, `admit` writes over.
        position, slot, sampled = (np.zeros(size, np.int32) for _ in range(3))
        given = np.full((size, self.step), OPEN, np.int32)
        of_row = np.zeros(size, np.int32)
        text, bare = np.zeros(count, np.int32), np.zeros(count, np.int32)
        configs = [work.request.sampling for work in self._work.values()]
        for lane, work in enumerate(self._work.values()):
            text[lane], bare[lane] = work.rows[0], work.rows[-1]
            lengths = (work.prompt, len(self._bare))
            for row, length in zip(work.rows, lengths, strict=False):
                position[row] = length - 1 + work.done
                slot[row] = self.span.prompt - 1 + work.done
                sampled[row] = work.done - work.skipped
                given[row] = work.given[work.done : work.done + self.step]
                of_row[row] = lane
        configs += [configs[0]] * (count - len(configs))
        self._rows, tokens = advance(
            self.engine.params,
            self._state(),
            Places(position, slot, sampled, given),
            Lanes(text, bare, of_row, row_settings(configs)),
            model=self.engine.model,
            first=self.span.first,
            last=self.span.last,
            size=size,
        )
        return to_host(tokens)

    def _prefilled(self, prompts: Sequence[np.ndarray], keys: jax.Array) -> Sequences:
        """The caches of prompts, for the random keys of their requests."""
        tokens, valid = left_padded(prompts, self.span.prompt)
        return prefill(
            self.engine.params,
            tokens,
            valid,
            keys,
            model=self.engine.model,
            count=self.span.count,
            first=self.span.first,
        )
