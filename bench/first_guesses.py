"""Passes of parallel decoding by what the first guess of a place is.

    .venv/bin/python -m bench.first_guesses --bundle runs/demo/bundle
    .venv/bin/python -m bench.first_guesses --bundle emoji

Prints, for each guess, the mean of the passes that the images of some prompts take. They are
sampled one after the other by `ContinuousBatch`, whose `Work` guesses the code above; the others
are here. Whatever the guess is, the images are the same, which is checked. Some guesses are codes
of earlier images, those of other prompts.
"""

import abc
import argparse
import zlib
from typing import ClassVar

import jax
import numpy as np

from bench.parallel_decoding import requests_of
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load
from cogview_jax.sampling.continuous import FEWEST, ContinuousBatch
from cogview_jax.sampling.engine import SamplingRequest, Span
from cogview_jax.sampling.work import Work


class Guess(Work, abc.ABC):
    """Another first guess of a place; the latest token is guessed where there is one.

    Attributes:
        earlier: images of other prompts, whose codes may be guessed: int32 [n, codes of an image].
    """

    earlier: ClassVar[np.ndarray]

    @abc.abstractmethod
    def first(self, place: int, line: np.ndarray) -> int:
        """The guess; `line` is as `Work.line`, and has the guesses of the places before."""

    def above(self, place: int, line: np.ndarray) -> int:
        """The code above, or the last that is known."""
        above = place - self.span.above if place >= self.span.above else self.reached - 1
        return int(line[1 + min(above, self.reached - 1)])

    def of_earlier(self, place: int) -> int:
        """The code of an earlier image, which the prompt chooses."""
        chosen = zlib.crc32(self.request.prompt.encode()) % len(self.earlier)
        return int(self.earlier[chosen, place])

    def guesses(self, places: int) -> np.ndarray:
        """See `Work.guesses`."""
        start, line = self.window(places), self.line.copy()
        for place in range(self.reached, start + places - 1):
            line[1 + place] = self.first(place, line)
        return line[start : start + places]


class Above(Guess):
    """the code above"""

    def first(self, place: int, line: np.ndarray) -> int:
        """See `Guess`."""
        return self.above(place, line)


class Last(Guess):
    """the last code that is known"""

    def first(self, place: int, line: np.ndarray) -> int:
        """See `Guess`."""
        return int(line[self.reached])


class Neighbours(Guess):
    """what followed the same left and upper neighbours in this image, else above"""

    def first(self, place: int, line: np.ndarray) -> int:
        """See `Guess`."""
        grid = self.span.above
        if place >= grid:
            for other in range(place - 1, grid - 1, -1):
                if line[other] == line[place] and line[1 + other - grid] == line[1 + place - grid]:
                    return int(line[1 + other])
        return self.above(place, line)


class BeginsAsEarlier(Guess):
    """above; the first window is that of an earlier image"""

    def first(self, place: int, line: np.ndarray) -> int:
        """See `Guess`."""
        if self.reached:
            return self.above(place, line)
        return self.of_earlier(place)


class Earlier(Guess):
    """the code of an earlier image"""

    def first(self, place: int, line: np.ndarray) -> int:
        """See `Guess`."""
        return self.of_earlier(place)


class Common(Guess):
    """the most common code of the place in earlier images"""

    def first(self, place: int, line: np.ndarray) -> int:
        """See `Guess`."""
        return int(np.bincount(self.earlier[:, place]).argmax())


class BeginsAsCommon(Common):
    """above; the first window has the most common codes of earlier images"""

    def first(self, place: int, line: np.ndarray) -> int:
        """See `Guess`."""
        return self.above(place, line) if self.reached else super().first(place, line)


GUESSES = (Above, Last, Neighbours, BeginsAsEarlier, Earlier, BeginsAsCommon, Common)


def main() -> None:
    """Measures every guess and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="emoji")
    parser.add_argument("--prompts", choices=("shapes", "emoji"), help="by default the bundle's")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--earlier", type=int, default=128)
    parser.add_argument("--windows", default="16,32")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = load(given.bundle)
    kind = given.prompts or ("emoji" if "emoji" in given.bundle else "shapes")
    requests = requests_of(model, kind, given.images, given.seed)
    others = requests_of(model, kind, given.earlier, given.seed + 1)
    Guess.earlier = codes_of(model, others)
    print(f"jax {jax.__version__}, {given.bundle}, {requests[0].sampling}", flush=True)
    print(f"{len(requests)} prompts, {len(others)} earlier images", flush=True)
    expected = codes_of(model, requests)
    for window in map(int, given.windows.split(",")):
        for guess in GUESSES:
            passes = np.array(passes_of(model, requests, expected, window, guess))
            error = passes.std(ddof=1) / len(passes) ** 0.5
            print(
                f"W = {window:2}: {passes.mean():5.1f} ± {error:.1f}  {guess.__doc__}", flush=True
            )


def codes_of(model: CogView, requests: list[SamplingRequest]) -> np.ndarray:
    """The codes of the requests' images, int32 [n, codes of an image]."""
    codes = np.concatenate([*model.generation.sample_codes(requests)])
    return codes.reshape(len(requests), -1)


def passes_of(
    model: CogView,
    requests: list[SamplingRequest],
    expected: np.ndarray,
    window: int,
    guess: type[Guess],
) -> list[int]:
    """The passes of each request's image, whose codes have to be those that are expected."""
    rows = model.generation.prompt_rows([request.prompt for request in requests])
    batch = ContinuousBatch(model.parts.engine, FEWEST, Span.of_image(model.layout).above, window)
    batch.make_work = guess
    passes = []
    for request, codes in zip(requests, expected, strict=True):
        (number,) = batch.add([request], [rows[request.prompt]])
        found: list[int] = []
        count = 0
        while batch.work:
            found += batch.advance()[number].tolist()
            count += 1
        assert found == codes.tolist(), request
        passes.append(count)
    return passes


if __name__ == "__main__":
    main()
