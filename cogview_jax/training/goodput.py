"""The wall time of a run by phase: useful steps, and everything else."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason
from cogview_jax.runtime.files import read_json, write_json
from cogview_jax.runtime.leftovers import set_aside

#: Phases: steps that a later start repeats, and time in which no process of the run existed.
LOST, DOWN = "lost", "down"
STEP = "step"
#: Names of phases in ledgers of earlier versions, and what they are now.
RENAMED = {"draw": "preview"}


@dataclass(frozen=True)
class _Ledger:
    """The content of the file."""

    goodput: float
    position: int
    seconds_per_step: float
    at: float
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        numbers = (*self.seconds.values(), self.at, self.seconds_per_step, self.position)
        if not all(map(math.isfinite, numbers)):
            raise InputError("damaged: expected numbers that are finite")


class Goodput:
    """A ledger of wall time over all starts of a run, kept in a file.

    Every second since the run was first started belongs to one phase: "step" (dispatching steps and
    waiting for their results), "data" (waiting for a batch while the devices had nothing to do),
    "start", "compile", "restore", "checkpoint" (the time for which saving blocks training),
    "validation", "preview", "report", "write" (the bundle), "lost" (steps that are repeated after a
    fault) and "down" (between the last record of a start and the next start).

    Goodput is the share of "step" in all of it.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        writes: bool = True,
    ):
        """Continues the ledger at `path`, if there is one, in phase "start".

        Args:
            path: the file. A damaged one is set aside, and a new one begun.
            clock: seconds since a fixed time, the same for all starts.
            writes: whether this process writes the file.
        """
        self.path, self._clock, self._writes = path, clock, writes
        self.seconds: dict[str, float] = {}
        self._since, self._phase = clock(), "start"
        self._position, self._step_seconds = 0, 0.0
        if found := self._found():
            self.seconds, at, self._position, self._step_seconds = found
            self._add(DOWN, max(0.0, self._since - at))

    def _found(self) -> tuple[dict[str, float], float, int, float] | None:
        """Seconds by phase, time, position and seconds a step, as earlier starts recorded them.

        None if there is no ledger. A damaged one is set aside.
        """
        try:
            ledger = build(_Ledger, read_json(self.path), "it")
        except FileNotFoundError:
            return None
        except OSError as error:
            print(f"{self.path}: {reason(error)}: begun anew", file=sys.stderr, flush=True)
            return None
        except InputError as error:
            if self._writes:
                set_aside(self.path, str(error).removeprefix(f"{self.path}: ")[:200])
            return None
        seconds = {RENAMED.get(name, name): spent for name, spent in ledger.seconds.items()}
        return seconds, ledger.at, ledger.position, ledger.seconds_per_step

    def resume(self, position: int) -> None:
        """This start begins at step `position`: later steps of earlier starts are lost."""
        lost = max(0, self._position - position) * self._step_seconds
        lost = min(lost, self.seconds.get(STEP, 0.0))
        self._add(STEP, -lost)
        self._add(LOST, lost)
        self._position = position

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time in the block belongs to phase `name`, except for the phases within it."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, name: str) -> str:
        """From now on, time belongs to phase `name`; returns the phase before."""
        now, before = self._clock(), self._phase
        self._add(before, now - self._since)
        self._since, self._phase = now, name
        return before

    @property
    def share(self) -> float:
        """Goodput: 0 to 1."""
        total = sum(self.seconds.values())
        return self.seconds.get(STEP, 0.0) / total if total else 0.0

    def record(self, position: int, seconds_per_step: float | None = None) -> None:
        """Writes the ledger after step `position`.

        Args:
            position: the number of steps done.
            seconds_per_step: the time that a lost step counts; None leaves it as it is.

        Raises:
            OSError: it cannot be written.
        """
        self.enter(self._phase)
        self._position = position
        self._step_seconds = self._step_seconds if seconds_per_step is None else seconds_per_step
        if self._writes:
            write_json(
                self.path,
                {
                    "goodput": self.share,
                    "position": position,
                    "seconds_per_step": self._step_seconds,
                    "at": self._clock(),
                    "seconds": self.seconds,
                },
            )

    def summary(self) -> str:
        """Goodput and the shares of all other phases, the largest first, in one line."""
        self.enter(self._phase)
        total = sum(self.seconds.values()) or 1.0
        rest = sorted(
            ((spent, name) for name, spent in self.seconds.items() if name != STEP), reverse=True
        )
        shown = [f"{name} {spent / total:.1%}" for spent, name in rest if spent / total >= 0.001]
        return f"goodput {self.share:.1%} of {total:.0f} s; {', '.join(shown)}"

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
