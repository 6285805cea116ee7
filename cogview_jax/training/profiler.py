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
        after: the number of steps of the run before the first profiled step.
        steps: how many steps are profiled; 0 for none.
    """

    after: int = 10
    steps: int = 0

    def __post_init__(self) -> None:
        require_range(self, "after", "steps", at_least=0)


class ProfilerWindow:
    """Starts and stops the profiler around the steps of a `ProfileConfig`.

    The trace in its folder is for TensorBoard's profile plugin, Perfetto or XProf.
    """

    def __init__(self, config: ProfileConfig, directory: Path):
        """Starts nothing; `directory` is the folder of the trace."""
        self._config, self._directory = config, directory
        self._running = False

    def before(self, done: int) -> None:
        """Called when `done` steps are done, before the next one starts."""
        if self._config.steps and done == self._config.after:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, done: int, outputs: Any) -> None:
        """Called when `done` steps were started, the last of which returns `outputs`."""
        if self._running and done == self._config.after + self._config.steps:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends a window that is still open, and writes its trace."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
