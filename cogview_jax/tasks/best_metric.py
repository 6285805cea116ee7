"""The metric by which a run's checkpoints are compared: its best ones, and early stopping."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from cogview_jax.runtime.config import closest
from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.train_config import TrainConfig
from cogview_jax.tasks.validation import higher_is_better


@dataclass(frozen=True)
class BestMetric:
    """A number of metrics.jsonl that tells a better checkpoint from a worse one.

    Attributes:
        name: of the number.
        highest: whether a higher value is better; otherwise a lower one is.
        phase: the measurement that it comes from, "validation" or "benchmark"; empty for a metric
            of the training steps themselves.
    """

    name: str
    highest: bool = False
    phase: str = ""


def find_best_metric(
    config: TrainConfig,
    validation: Collection[str],
    benchmark: Mapping[str, bool],
    of_steps: Callable[[], Collection[str]],
) -> BestMetric:
    """What `config.best_metric` names.

    Args:
        config: of the run.
        validation: the names of what is measured on held-out records.
        benchmark: the numbers of the benchmark that tell better from worse, and whether a higher
            value is better; see `check_benchmark`.
        of_steps: returns the names of the metrics of a training step; it is called if needed.

    Raises:
        InputError: the run has no such metric, or `stop_after` is to count its measurements and it
            is one of the training steps.
    """
    name = config.best_metric
    if name in validation:
        return BestMetric(name, higher_is_better(name), "validation")
    if name in benchmark:
        return BestMetric(name, benchmark[name], "benchmark")
    for prefix, there, missing in (
        ("validation_", validation, "train.validate_every is 0"),
        ("benchmark/", config.benchmark, "train.benchmark is empty"),
    ):
        if name.startswith(prefix) and not there:
            raise InputError(f"train.best_metric = {name!r} is not measured, since {missing}")
    if name.startswith("benchmark/") and not benchmark:
        raise InputError(
            f"train.best_metric = {name!r}: the file of the benchmark {config.benchmark} does not"
            " say which of its numbers are better when they are higher (`higher_is_better`)"
        )
    measured = {*validation, *benchmark}
    if config.stop_after:
        raise InputError(
            f"train.stop_after = {config.stop_after} counts measurements of held-out records or of"
            f" a benchmark, but train.best_metric = {name!r} is none of them:"
            f" {closest(name, measured)}"
        )
    known = {"loss"} if name == "loss" else {*of_steps()}
    if name not in known:
        raise InputError(
            f"train.best_metric = {name!r} is not measured: {closest(name, measured | known)}"
        )
    return BestMetric(name, higher_is_better(name))
