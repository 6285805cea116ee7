"""A window of steps under jax's profiler."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from cogview_jax.runtime.config import require_range


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps are profiled. The first step of a start compiles.

    Attributes:
        after: the first profiled step comes after so many steps, counted from the beginning of the
            run.
        steps: how many steps are profiled; 0 for none.
    """

    after: int = 10
    steps: int = 0

    def __post_init__(self) -> None:
        require_range(self, "after", "steps", at_least=0)


class ProfilerWindow:
    """Starts and stops the profiler around the steps of a `ProfileConfig`.

    Its trace lies in a folder, for TensorBoard's profile plugin, Perfetto or XProf.
    """

    def __init__(self, config: ProfileConfig, directory: Path):
        """Nothing runs yet."""
        self._config, self._directory = config, directory
        self._running = False

    def before(self, done: int) -> None:
        """To be called when `done` steps are done and the next is about to start."""
        if self._config.steps and done == self._config.after:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, done: int, outputs: Any) -> None:
        """To be called when `done` steps were started, the last of which gives `outputs`."""
        if self._running and done == self._config.after + self._config.steps:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Writes what there is of a window that is still open."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
