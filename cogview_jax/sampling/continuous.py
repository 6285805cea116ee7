"""Continuous batching: a row is given to the next request as soon as its own is finished.

A batch of `engine.Engine` begins and ends together. Here each row is at its own place. A row's
tokens are those that `Engine` samples for the request: its prompt fills the same slots of its
cache, and its random numbers are the same. What the device does is in `sampling.rows`.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
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
from cogview_jax.sampling.parallel import usable_window
from cogview_jax.sampling.rows import (
    Admission,
    Lanes,
    Places,
    Rows,
    admit,
    advance,
    window_pass,
)
from cogview_jax.sampling.work import Work
from cogview_jax.tokenizers.layout import left_padded

#: Requests that begin together.
TOGETHER = 8
#: How many prompts are computed at once: each number is a program of its own.
PREFILLED = (1, 2, 4, TOGETHER)
#: The fewest rows that are computed, and how many times more the next larger program has.
FEWEST, STEP = 2, 4
#: Rows of the largest program that computes windows: with more a pass does not wait for weights.
MOST_IN_WINDOWS = 8


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

    Attributes:
        make_work: keeps the tokens of a request, and guesses the next.
    """

    make_work: type[Work] = Work

    def __init__(self, engine: Engine, rows: int, step: int, window: int = 0):
        """Takes the memory of the cache.

        Args:
            engine: whose requests these are, of images.
            rows: how many there are, a power of two of at least `FEWEST`.
            step: tokens that are sampled of each request at a time.
            window: places of a row that go through the model at once while few rows are at work
                (`sampling.parallel`); 0 for one after the other.

        Raises:
            InputError: the model cannot have a window.
        """
        self.engine, self.span, self.step = engine, Span.of_image(engine.layout), step
        self.window = usable_window(engine.model, window, self.span.count)
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
        self._work: dict[int, Work] = {}
        self._number = 0
        self._rows: Rows | None = None  # frees memory first
        bare = self._without_text = self._prefilled([self._bare], _no_keys(1))

        def every(leaf: jax.Array) -> jax.Array:
            return jnp.repeat(leaf, self.rows, axis=0)

        self._rows = Rows(
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
                self._sampled(size, lanes, self._places(size))
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
            known = given[i]
            if known is None:
                known = np.full(self.span.count, OPEN, np.int32)
            self._work[self._number] = self.make_work(request, rows, prompt, known, self.span)
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
        """Samples more tokens of every request: int32 [n] by number.

        They are `step`, or fewer at the end of an image; in a window as many as turn out to be
        right, at least one. Requests that have all their tokens are no longer at work.
        """
        if not self._work:
            return {}
        highest = max(row for work in self._work.values() for row in work.rows)
        size = next(size for size in self.sizes if size > highest)
        half, places = max(1, size // 2), self._places(size)
        tokens = self._sampled(size, half if len(self._work) <= half else size, places)
        found = {}
        for number, work in list(self._work.items()):
            new = tokens[work.rows[0]]
            found[number] = work.accept(new) if places == 1 else work.accept_window(new)
            if work.finished:
                del self._work[number]
        return found

    def _places(self, size: int) -> int:
        """How many places of a row a program of `size` rows computes at once."""
        return self.window if self.window > 1 and size <= MOST_IN_WINDOWS else 1

    def _state(self) -> Rows:
        assert self._rows is not None, "there is one but within clear()"
        return self._rows

    def _sampled(self, size: int, count: int, places: int) -> np.ndarray:
        """What a program of `size` rows and `count` requests samples: int32 [size, n].

        n is `step`, where each token follows from the one before, or in windows their `places`.
        """
        # Rows without work compute too; what they write, `admit` writes over.
        length = self.step if places == 1 else places
        position, slot, sampled = (np.zeros(size, np.int32) for _ in range(3))
        token, given = np.zeros((size, places), np.int32), np.full((size, length), OPEN, np.int32)
        of_row = np.zeros(size, np.int32)
        text, bare = np.zeros(count, np.int32), np.zeros(count, np.int32)
        configs = [work.request.sampling for work in self._work.values()]
        for lane, work in enumerate(self._work.values()):
            text[lane], bare[lane] = work.rows[0], work.rows[-1]
            lengths, start = (len(work.prompt), len(self._bare)), work.window(places)
            known = work.given[start : start + length]
            for row, before in zip(work.rows, lengths, strict=False):
                token[row] = work.guesses(places)
                position[row] = before - 1 + start
                slot[row] = self.span.prompt - 1 + start
                sampled[row] = start - work.skipped
                given[row, : len(known)] = known
                of_row[row] = lane
        configs += [configs[0]] * (count - len(configs))
        program = advance if places == 1 else window_pass
        self._rows, tokens = program(
            self._params,
            self._state(),
            Places(token[:, 0] if places == 1 else token, position, slot, sampled, given),
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
