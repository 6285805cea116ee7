"""A request of a continuous batch: which tokens it has, and what comes next."""

from dataclasses import dataclass, field

import numpy as np

from cogview_jax.sampling.engine import SamplingRequest, Span


@dataclass
class Work:
    """A request at work.

    Attributes:
        request: what is sampled.
        rows: with its text, and without it where there is guidance.
        prompt: the tokens that it continues, int32 [n], without padding.
        given: int32 [span.count], tokens that are known already, and -1 where they are sampled.
        span: the part of the sequence that is sampled.
        skipped: how many of the first tokens are given.
        line: int32 [1 + span.count], the last token of the prompt, then the latest of each place.
        done: how many of them are right.
        reached: how many there are; those behind `done` are guesses.
    """

    request: SamplingRequest
    rows: tuple[int, ...]
    prompt: np.ndarray
    given: np.ndarray
    span: Span
    skipped: int = field(init=False)
    line: np.ndarray = field(init=False)
    done: int = 0
    reached: int = 0

    def __post_init__(self) -> None:
        open_places = np.flatnonzero(self.given < 0)
        self.skipped = int(open_places[0]) if len(open_places) else len(self.given)
        self.line = np.append(self.prompt[-1:], self.given).astype(np.int32)

    @property
    def finished(self) -> bool:
        """Whether all its tokens are there."""
        return self.done == self.span.count

    def window(self, places: int) -> int:
        """The first of so many places that go through the model next; none is behind the last."""
        return min(self.done, self.span.count - places)

    def guesses(self, places: int) -> np.ndarray:
        """What stands before each place of the window: int32 [places], the first of it is right.

        As `parallel.decode_parallel` has it: the latest token of a place, and of one that has none
        yet the one above, which may be a guess too.
        """
        at = self.window(places) - 1 + np.arange(places)
        above = np.where(at >= self.span.above, at - self.span.above, self.reached - 1)
        guessed = np.where(at < self.reached, at, np.minimum(above, self.reached - 1))
        return np.where(self.given[at] < 0, self.line[guessed + 1], self.line[at + 1])

    def accept(self, tokens: np.ndarray) -> np.ndarray:
        """Keeps tokens that are right, int32 [n], of the next places, and returns those there are.

        There are fewer than n at the end of the sequence.
        """
        new = tokens[: self.span.count - self.done]
        self.line[1 + self.done : 1 + self.done + len(new)] = new
        self.done += len(new)
        self.reached = max(self.reached, self.done)
        return new

    def accept_window(self, sampled: np.ndarray) -> np.ndarray:
        """Keeps what was sampled in a window, int32 [places], up to the first wrong guess.

        Returns:
            The tokens that are new and right, int32 [1 or more].
        """
        places, guesses = len(sampled), self.guesses(len(sampled))
        start, end = self.window(places), self.window(places) + places
        before = self.done - start
        sampled = np.append(self.line[1 + start : 1 + self.done], sampled[before:])
        wrong = np.flatnonzero(sampled[before:-1] != guesses[before + 1 :])
        right = before + 1 + (int(wrong[0]) if len(wrong) else places - before - 1)
        self.line[1 + start : 1 + end] = sampled
        self.reached = max(self.reached, end)
        return self.accept(sampled[before:right])
