"""Continuous batching: a row is given to the next request as soon as its own is finished.

A batch of `engine.Engine` begins and ends together. Here each row is at its own place. A row's
tokens are those that `Engine` samples for the request: its prompt fills the same slots of its
cache, and its random numbers are the same. What the device does is in `sampling.rows`.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.models.linear import matvec_parts, split_for_cores
from cogview_jax.runtime.mesh import to_host
from cogview_jax.runtime.random_key import GENERATOR
from cogview_jax.sampling.decode import OPEN, Sequences, prefill, sample_keys
from cogview_jax.sampling.engine import Engine, SamplingRequest, Span
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.rows import Admission, Lanes, Places, Rows, admit, advance
from cogview_jax.tokenizers.layout import left_padded

#: Requests that begin together.
TOGETHER = 8
#: How many prompts are computed at once: each number is a program of its own.
PREFILLED = (1, 2, 4, TOGETHER)
#: The fewest rows that are computed, and how many times more the next larger program has.
FEWEST, STEP = 2, 4


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


@functools.partial(jax.jit, static_argnums=1)
def _split(params: Mapping[str, Any], parts: int) -> Any:
    return split_for_cores(params, parts)


def _no_keys(count: int) -> np.ndarray:
    """Data of random keys that nothing is sampled with: uint32 [count, 2]."""
    return np.zeros((count, 2), np.uint32)


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
        # Split for the cores of a CPU once, not at every step; elsewhere they are the same arrays.
        parts = matvec_parts(FEWEST, engine.model.programs.platform)
        self._params = _split(engine.params, parts) if parts > 1 else engine.params
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
        bare = self._without_text = self._prefilled([self._bare], _no_keys(1))

        def every(leaf: jax.Array) -> jax.Array:
            return jnp.repeat(leaf, self.rows, axis=0)

        self._rows = Rows(
            every(bare.token),
            every(bare.cache_mask),
            jax.tree.map(every, bare.cache),
            jnp.asarray(_no_keys(self.rows)),
        )

    def compile(self) -> None:
        """Compiles every program that requests will run. There may be none at work."""
        assert not self._work, "only before the first request"
        for size in PREFILLED:
            self._fill([self._bare] * size, [[]] * size, [], _no_keys(1))
        # One request fits every program.
        self.add([SamplingRequest("")], [self._bare])
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
        bare = [] if sparse else shared.pop((self._bare.tobytes(), 0), [])
        for start in range(0, max(1, len(shared)), TOGETHER):
            names = [*shared][start : start + TOGETHER]
            self._fill(
                [tokens_of[each] for each in names], [shared[each] for each in names], bare, data
            )
            bare = []
        return numbers

    def _fill(
        self,
        prompts: Sequence[np.ndarray],
        rows: Sequence[Sequence[tuple[int, int]]],
        bare: Sequence[tuple[int, int]],
        keys: np.ndarray,
    ) -> None:
        """Gives rows the caches of their prompts.

        Args:
            prompts: at most TOGETHER, which are computed.
            rows: those of each prompt, each with the number of its key.
            bare: those of the prompt without a text, which is computed already.
            keys: uint32 [n, 2], of the requests.
        """
        places = [(row, place, i) for place, some in enumerate(rows) for row, i in some]
        places += [(row, -1, i) for row, i in bare]
        size = next(size for size in PREFILLED if size >= len(prompts))
        filled = [*range(len(prompts)), *[0] * (size - len(prompts))]
        computed = self._without_text
        if prompts:
            own = [rows[place][0][1] if rows[place] else 0 for place in filled]
            computed = self._prefilled([prompts[place] for place in filled], keys[own])
        count = np.int32(len(places))
        row, prompt, number = np.array(places + [(0, 0, 0)] * (2 * TOGETHER - count), np.int32).T
        admission = Admission(row, prompt, keys[number], count)
        self._rows = admit(self._state(), computed, self._without_text, admission)

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
            self._params,
            self._state(),
            Places(position, slot, sampled, given),
            Lanes(text, bare, of_row, row_settings(configs)),
            model=self.engine.model,
            first=self.span.first,
            last=self.span.last,
            size=size,
        )
        return to_host(tokens)

    def _prefilled(self, prompts: Sequence[np.ndarray], keys: np.ndarray) -> Sequences:
        """The caches of prompts, for the data of the random keys of their requests."""
        tokens, valid = left_padded(prompts, self.span.prompt)
        return prefill(
            self.engine.params,
            tokens,
            valid,
            jax.random.wrap_key_data(jnp.asarray(keys), impl=GENERATOR),
            model=self.engine.model,
            count=self.span.count,
            first=self.span.first,
        )
