"""What a caller may ask of sampling: how tokens are chosen, and how a call is run. Free of jax."""

import math
import numbers
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypedDict

from cogview_jax.runtime.bounds import MOST_ROWS, need_count, need_seed
from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.errors import InputError

#: Beyond this guidance the difference it multiplies could overflow.
MOST_GUIDANCE = 1e6
#: More places at once than this are never all right.
MOST_WINDOW = 1024


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is chosen from its distribution. The defaults are those of the CogView release.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens that together reach this probability; 1 for all.
        guidance: how strongly the text is followed (`filters.guided`); 1 leaves the model as it is,
            another value computes twice as many rows.
        parallel_window: places of a row that go through the model at once (`parallel`), which
            changes no token; 0 for one after the other.

    Raises:
        InputError: a value is of another type or out of its range.
    """

    temperature: float = 1.0
    top_k: int = 200
    top_p: float = 1.0
    guidance: float = 1.0
    parallel_window: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            whole = name in ("top_k", "parallel_window")
            if not isinstance(value, numbers.Integral if whole else numbers.Real):
                kind = "a whole number" if whole else "a number"
                raise SettingError(f"{name} = {value!r}: expected {kind}")
        if not 0 <= self.temperature < math.inf:
            raise SettingError(f"temperature = {self.temperature}: expected 0 (greedy) or above")
        if self.top_k < 0:
            raise SettingError(f"top_k = {self.top_k}: expected 0 (all tokens) or above")
        if not 0 < self.top_p <= 1:
            raise SettingError(f"top_p = {self.top_p}: expected above 0 and at most 1 (all tokens)")
        if not 0 <= self.guidance <= MOST_GUIDANCE:
            raise SettingError(
                f"guidance = {self.guidance}: expected 0 (no text) to {MOST_GUIDANCE:.0f}"
            )
        if not 0 <= self.parallel_window <= MOST_WINDOW:
            raise SettingError(
                f"parallel_window = {self.parallel_window}: expected 0 (one token after the other)"
                f" to {MOST_WINDOW}"
            )

    def need_no_guidance(self, what: str) -> None:
        """InputError where there is guidance, for `what` knows no text to leave out."""
        if self.guidance != 1:
            raise InputError(f"guidance {self.guidance}: {what} has none, leave it at 1")


@dataclass(frozen=True)
class SamplingSettings:
    """Fields of `SamplingConfig` of which some may be left open: a bundle's, or a command's flags.

    Attributes:
        temperature, top_k, top_p, guidance, parallel_window: as of `SamplingConfig`; None where
            nobody says.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance: float | None = None
    parallel_window: int | None = None

    def __post_init__(self) -> None:
        self.over(SamplingConfig())

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are not open, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, usual: SamplingConfig) -> SamplingConfig:
        """These settings, and those of `usual` where they are open."""
        return replace(usual, **self.given)


class SamplingKeywords(TypedDict, total=False):
    """The keywords that every sampling method of `CogView` takes: fields of `SamplingOptions`."""

    sampling: SamplingConfig | None
    batch_size: int | None
    progress: Callable[[int], None] | None


@dataclass(frozen=True)
class SamplingOptions:
    """How a call samples, whatever its task.

    Attributes:
        seed: of the random numbers, 0 to 2**32 - 1.
        sampling: temperature, filters and guidance; None for `CogView.default_sampling`.
        batch_size: rows sampled at a time; None for what free memory has room for. No result
            depends on it.
        progress: is called with how many results were finished since its last call.

    Raises:
        InputError: a value is of another type or out of its range.
    """

    seed: int = 0
    sampling: SamplingConfig | None = None
    batch_size: int | None = None
    progress: Callable[[int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        need_seed(self.seed)
        if self.sampling is not None and not isinstance(self.sampling, SamplingConfig):
            raise InputError(f"sampling = {self.sampling!r}: expected a SamplingConfig")
        if self.batch_size is not None:
            need_count("batch_size", self.batch_size, MOST_ROWS)

    def config(self, default: SamplingConfig = SamplingConfig()) -> SamplingConfig:
        """The `sampling` that was given, or the `default` of a task."""
        return default if self.sampling is None else self.sampling

    def report(self, count: int) -> None:
        """Tells `progress`, if there is one, that `count` more results are finished."""
        if self.progress is not None:
            self.progress(count)
