"""What a run measures, reports and shows while it trains."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from PIL import Image

from cogview_jax.data.sources.source import Source
from cogview_jax.evaluation.benchmark import Options, available, load_benchmark, measure
from cogview_jax.runtime.bounds import MOST_PROMPTS, need_count
from cogview_jax.runtime.config import closest
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import TolerateDiskErrors
from cogview_jax.runtime.files import atomic_path
from cogview_jax.runtime.hardware import device_memory, known, peak_flops
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.processes import is_primary
from cogview_jax.runtime.progress import Progress
from cogview_jax.tasks.bundle_choice import bundle_state
from cogview_jax.tasks.collapse import CollapseWarning
from cogview_jax.tasks.early_stopping import EarlyStopping
from cogview_jax.tasks.experiment import CodecExperiment, Experiment
from cogview_jax.tasks.task import Task, Validation
from cogview_jax.tasks.train_config import TrainConfig
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.training.goodput import Goodput
from cogview_jax.training.loop import Measured, Measurement
from cogview_jax.training.metrics import MetricsWriter
from cogview_jax.training.objective import Objective
from cogview_jax.training.state import TrainState

#: Numbers of a measurement that are printed.
SAID = 8


class Monitor:
    """Writes what a run measures, and shows what its weights can do.

    Held-out records, benchmarks and previews take the weights that the bundle takes.

    Attributes:
        reported: the metrics of the last log point, by its step.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Workdir,
        task: Task,
        source: Source[Any],
        validation: Validation | None,
        early_stopping: EarlyStopping,
        writer: MetricsWriter,
        goodput: Goodput,
        progress: Progress,
    ) -> None:
        """Nothing is measured yet."""
        self._experiment, self._workdir, self._task = experiment, workdir, task
        self._source, self._validation, self._early = source, validation, early_stopping
        self._writer, self._goodput, self._progress = writer, goodput, progress
        self._per_second = throughput(task.objective, experiment)
        self._tolerate_disk_errors = TolerateDiskErrors()
        self.reported: dict[int, dict[str, float]] = {}
        self._collapse = None
        if isinstance(experiment, CodecExperiment):
            self._collapse = CollapseWarning(experiment)

    def measurements(self) -> tuple[Measurement, ...]:
        """What is measured every so many steps: held-out records, and a benchmark.

        What may end the run comes first, so that what else is due then is measured as well.
        """
        config, found = self._experiment.train, []
        if self._validation is not None:
            found.append(Measurement("validation", self._validation.every, self._validate))
        if config.benchmark:
            found.append(Measurement("benchmark", config.benchmark_every, self._benchmark))
        first = self._early.metric.phase
        return tuple(sorted(found, key=lambda each: each.name != first))

    def report(self, measured: Measured) -> None:
        """Writes a log point into metrics/ and shows some of it."""
        step, seconds = measured.step, measured.seconds_per_step
        self.reported.clear()
        self.reported[step] = measured.metrics
        if self._collapse is not None:
            self._collapse.check(step, measured.metrics)
        metrics = measured.metrics | self._per_second(seconds) | device_memory()
        with self._tolerate_disk_errors("the ledger", step):
            self._goodput.record(step, seconds)
        with self._tolerate_disk_errors("metrics", step):
            self._writer.scalars(step, metrics | {"goodput": self._goodput.share})
        shown = {name: metrics[name] for name in ("loss", "tokens_per_second")}
        if isinstance(self._experiment, CodecExperiment):
            # Its tokens are codes of images, whose number tells people little.
            images = self._experiment.train.global_batch / seconds
            shown = {"loss": shown["loss"], "images_per_second": images}
        self._progress.reach(step, **shown)

    def sample(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Writes a preview into samples/ and TensorBoard."""
        image = self._task.preview(self._for_bundle(state), self._source)
        with self._tolerate_disk_errors("metrics", step):
            self._writer.images(step, "samples", image)
        if is_primary():
            file = self._workdir.samples / f"step_{step:08d}.png"
            with self._tolerate_disk_errors("the sample", step), atomic_path(file) as temporary:
                Image.fromarray(image).save(temporary)

    def _for_bundle(self, state: TrainState) -> TrainState:
        return bundle_state(self._task.objective, self._experiment.train, state)

    def _validate(self, step: int, state: TrainState) -> dict[str, float]:
        assert self._validation is not None
        metrics = self._validation.measure(self._for_bundle(state))
        return self._seen(step, metrics)

    def _seen(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Compares what was measured with what was before, and says it."""
        self._early.see(step, metrics)
        said = ", ".join(f"{name} {metrics[name]:.4g}" for name in [*metrics][:SAID])
        more = f" and {len(metrics) - SAID} more in metrics.jsonl" if len(metrics) > SAID else ""
        self._progress.say(f"step {step}: {said}{more}{self._early.standing(metrics)}")
        return metrics

    def _benchmark(self, step: int, state: TrainState) -> dict[str, float]:
        """The numbers of the report of the benchmark, "benchmark/" before their names."""
        config = self._experiment.train
        # Not by free memory, which may differ between the processes of a run.
        rows = min(config.benchmark_prompts, config.global_batch // config.accumulate)
        folder = self._workdir.path / "benchmark.unfinished"
        if is_primary():
            shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run, of other weights
        options = Options(
            count=config.benchmark_prompts,
            batch_size=rows,
            bundle=f"step {step}",  # what an interrupted run had measured of another is not taken
            unfinished=str(folder),
        )
        model = self._task.cogview(self._for_bundle(state))
        found = measure(load_benchmark(config.benchmark), model, options)
        if is_primary():
            shutil.rmtree(folder, ignore_errors=True)
        metrics = dict(numbers(found.report, "benchmark"))
        best = self._early.metric
        if best.phase == "benchmark" and best.name not in metrics:
            raise InputError(
                f"train.best_metric = {best.name!r}: the benchmark {config.benchmark} did not"
                f" measure it at step {step}; {closest(best.name, metrics)}"
            )
        return self._seen(step, metrics)


def check_benchmark(config: TrainConfig, task: str | None) -> dict[str, bool]:
    """The numbers of the benchmark of a run that may be its `best_metric`.

    Args:
        config: of the run.
        task: of the transformer that is trained; None for an image tokenizer.

    Returns:
        Their names in metrics.jsonl, and whether a higher value is better; empty without a
        benchmark, and where its file says nothing of that.

    Raises:
        InputError: it is none that training can run, it measures nothing of what is trained, or
            has too few or too many examples.
    """
    name = config.benchmark
    if not name:
        return {}
    need_count("train.benchmark_prompts", config.benchmark_prompts, MOST_PROMPTS, 2)
    if name not in available():
        raise InputError(f"train.benchmark = {name!r}: {closest(name, available())}")
    benchmark = load_benchmark(name)
    if not getattr(benchmark, "NEEDS_BUNDLE", True):
        raise InputError(
            f"train.benchmark = {name!r} measures images and no bundle: run evaluate --benchmark"
            f" {name}, or choose another"
        )
    if flags := getattr(benchmark, "NEEDS_FLAGS", ()):
        raise InputError(
            f"train.benchmark = {name!r} needs {' and '.join(flags)}, which a config cannot give:"
            f" run evaluate --benchmark {name} beside it, or choose another"
        )
    if jax.process_count() > 1 and getattr(benchmark, "SHARES_WORK", False):
        raise InputError(
            f"train.benchmark = {name!r} splits its images over processes, which share the weights"
            f" in training: run evaluate --benchmark {name} beside it, or choose another"
        )
    if (higher_is_better := getattr(benchmark, "higher_is_better", None)) is None:
        return {}
    if not (stated := higher_is_better(task)):
        trained = "an image tokenizer" if task is None else f"a transformer of layout.task {task}"
        raise InputError(
            f"train.benchmark = {name!r} measures nothing of {trained}: choose another, or none"
        )
    return {f"benchmark/{key}": higher for key, higher in stated.items()}


def numbers(report: Mapping[str, Any], name: str) -> Iterator[tuple[str, float]]:
    """The numbers of a report and of the sections in it: ("NAME/key/key", number)."""
    for key, value in report.items():
        place = f"{name}/{key}"
        if isinstance(value, Mapping):
            yield from numbers(value, place)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield place, float(value)


def throughput(
    objective: Objective[Any], experiment: Experiment
) -> Callable[[float], dict[str, float]]:
    """A function from seconds a step to tokens_per_second and mfu.

    tokens_per_second: of sequences; of an image tokenizer the codes of its images. mfu: model
    FLOPs a second over the peak of all devices (see `runtime.hardware`).
    """
    rows, device = experiment.train.global_batch, jax.devices()[0]
    peak = peak_flops(device, policy(experiment.precision).compute) * jax.device_count()

    def measure(seconds: float) -> dict[str, float]:
        nonlocal peak
        rate = rows * objective.flops_per_row / seconds
        if known(device.device_kind) is None:
            peak = max(peak, rate)  # it was only measured
        return {
            "tokens_per_second": rows * objective.tokens_per_row / seconds,
            "mfu": rate / peak,
        }

    return measure
