"""Continuous batching: rows of one cache, each at its own place in a sequence of its own.

A batch of `engine.Engine` begins and ends together. Here a row is given to the next request as soon
as its own is finished or given up. A row's tokens are those that `Engine` samples for the request:
its prompt fills the same slots of its cache, and its random numbers are the same.

Legend: R rows, L requests at work, S slots of the cache, C tokens of one step.
"""

import functools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.models.linear import matvec_parts, matvec_product, split_for_cores
from cogview_jax.models.transformer import Cache, Transformer, cached_forward
from cogview_jax.runtime.mesh import to_host
from cogview_jax.sampling.decode import OPEN, Sequences, prefill, sample_keys
from cogview_jax.sampling.engine import Engine, SamplingRequest, Span
from cogview_jax.sampling.filters import RowSettings, guided, row_settings, sample_token
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.layout import left_padded

#: Prompts whose caches are kept: the one without text, for guidance, and that of the last request.
KEPT = 2
#: The fewest rows that are computed, and how many times more the next larger program has.
FEWEST, STEP = 2, 4


class Rows(NamedTuple):
    """What the device holds of all rows.

    token: int32 [R], the last token of each, which the cache does not hold yet. cache_mask: bool
    [R, S]. cache: see `empty_cache`. keys: [R], the random key of each.
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
def admit(rows: Rows, sequence: Sequences, row: jax.Array | int) -> Rows:
    """Gives a row to a prompt, from `prefill` of one."""
    new = Rows(sequence.token, sequence.cache_mask, sequence.cache, sequence.keys)
    return jax.tree.map(lambda old, leaf: old.at[row].set(leaf[0]), rows, new)


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
        keys = jax.vmap(jax.random.fold_in)(some.keys, places.sampled + i)
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
    has, without padding. given: int32 [span.count], see `Places`. done: how many tokens it has.
    """

    request: SamplingRequest
    rows: tuple[int, ...]
    prompt: int
    given: np.ndarray
    skipped: int
    done: int = 0


class ContinuousBatch:
    """Requests that are sampled together, whenever each began.

    Not for use by several threads at once. After an error of the device nothing of it is left:
    `clear` makes it usable again.
    """

    def __init__(self, engine: Engine, rows: int, columns: int):
        """Takes the memory of the cache.

        Args:
            engine: whose requests these are, of images.
            rows: how many there are, a power of two of at least `FEWEST`.
            columns: tokens that a step samples of each request; images have a multiple of it.
        """
        self.engine, self.span, self.columns = engine, Span.of_image(engine.layout), columns
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
        self._kept: OrderedDict[bytes, Sequences] = OrderedDict()
        self._number = 0
        self._on_device: Rows | None = None
        one = self._prefilled(self._bare, SamplingRequest(""))

        def every(leaf: jax.Array) -> jax.Array:
            return jnp.repeat(leaf, self.rows, axis=0)

        self._on_device = Rows(
            every(one.token),
            every(one.cache_mask),
            jax.tree.map(every, one.cache),
            jnp.stack([one.keys[0]] * self.rows),
        )

    def compile(self) -> None:
        """Compiles every program that requests will run. There may be none at work."""
        assert not self._work, "only before the first request"
        guidance = replace(SamplingConfig(), guidance=2.0)
        self.add(SamplingRequest("", sampling=guidance), self._bare)
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
        self, request: SamplingRequest, prompt: np.ndarray, given: np.ndarray | None = None
    ) -> int:
        """Begins to sample.

        Args:
            request: which fits.
            prompt: the tokens that it continues, int32 [at most the prompt length].
            given: int32 [codes of an image], which of them are known already; -1 is sampled. Those
                before the first open one count as the prompt, as `Engine` has it.

        Returns:
            The number of the request.
        """
        assert self.fits(request), "ask first"
        taken = {row for work in self._work.values() for row in work.rows}
        free = [row for row in range(self.rows) if row not in taken]
        rows = tuple(free[: self.rows_of(request)])
        for row, tokens in zip(rows, (prompt, self._bare), strict=False):
            sequence = self._prefilled(tokens, request)
            self._on_device = admit(self._state(), sequence, row)
        if given is None:
            given = np.full(self.span.count, OPEN, np.int32)
        skipped = int(np.argmax(given < 0)) if (given < 0).any() else len(given)
        self._number += 1
        self._work[self._number] = _Work(request, rows, len(prompt), given, skipped)
        return self._number

    def remove(self, number: int) -> None:
        """Gives a request up, if it is at work; its rows are free."""
        self._work.pop(number, None)

    def advance(self) -> dict[int, np.ndarray]:
        """Samples `columns` more tokens of every request: int32 [columns] by number.

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
            self._work[number] = replace(work, done=work.done + self.columns)
            if self._work[number].done >= self.span.count:
                del self._work[number]
        return found

    def _state(self) -> Rows:
        assert self._on_device is not None, "there is one but within clear()"
        return self._on_device

    def _step(self, size: int, count: int) -> np.ndarray:
        """The tokens of a program of `size` rows and `count` requests: int32 [size, columns]."""
        # Rows without work compute too; what they write, `admit` writes over.
        position, slot, sampled = (np.zeros(size, np.int32) for _ in range(3))
        given = np.full((size, self.columns), OPEN, np.int32)
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
                given[row] = work.given[work.done : work.done + self.columns]
                of_row[row] = lane
        configs += [configs[0]] * (count - len(configs))
        self._on_device, tokens = advance(
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

    def _prefilled(self, prompt: np.ndarray, request: SamplingRequest) -> Sequences:
        """The cache of a prompt, and the random key of the request."""
        key = sample_keys([request.seed], [request.prompt], [request.index])
        kept = self._kept.get(prompt.tobytes())
        if kept is None:
            tokens, valid = left_padded([prompt], self.span.prompt)
            kept = prefill(
                self.engine.params,
                tokens,
                valid,
                key,
                model=self.engine.model,
                count=self.span.count,
                first=self.span.first,
            )
        if not self.engine.model.config.sparse:  # whose pivots are a request's own
            self._kept[prompt.tobytes()] = kept
            self._kept.move_to_end(prompt.tobytes())
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return kept._replace(keys=key)
