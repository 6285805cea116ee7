"""Where the wall time of a run goes: useful steps, and everything else by name."""

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
from cogview_jax.runtime.set_aside import set_aside

#: Time in steps that a later start has to do again, and time in which the run did not run.
LOST, DOWN = "lost", "down"
STEP = "step"


@dataclass(frozen=True)
class _Ledger:
    """What the file holds."""

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
    "start", "compile", "restore", "checkpoint" (what saving keeps training waiting), "draw",
    "report", "write" (the bundle), "lost" (steps done again after a fault) and "down" (between a
    start's last record and the next start).

    Goodput is the share of "step" in all of it.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        writes: bool = True,
    ):
        """Goes on with the ledger at `path`, if there is one, in phase "start".

        Args:
            path: the file; a damaged one is set aside and begun anew.
            clock: seconds since a time that does not change between starts.
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
        """Seconds by phase, time, position and seconds a step that earlier starts wrote down.

        None where there is no ledger; one that is damaged is set aside.
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
        return ledger.seconds, ledger.at, ledger.position, ledger.seconds_per_step

    def resume(self, position: int) -> None:
        """This start begins at step `position`: what was done beyond it is lost."""
        lost = max(0, self._position - position) * self._step_seconds
        lost = min(lost, self.seconds.get(STEP, 0.0))
        self._add(STEP, -lost)
        self._add(LOST, lost)
        self._position = position

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time of the block belongs to `name`, but for the phases within it."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, name: str) -> str:
        """From now on time belongs to `name`; returns what it belonged to."""
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
        """Writes the ledger after step `position`; OSError where that fails.

        seconds_per_step: what a lost step will count; None is what it was before.
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
        """Goodput and where the rest went, in one line, the largest first."""
        self.enter(self._phase)
        total = sum(self.seconds.values()) or 1.0
        rest = sorted(
            ((spent, name) for name, spent in self.seconds.items() if name != STEP), reverse=True
        )
        shown = [f"{name} {spent / total:.1%}" for spent, name in rest if spent / total >= 0.001]
        return f"goodput {self.share:.1%} of {total:.0f} s; {', '.join(shown)}"

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
