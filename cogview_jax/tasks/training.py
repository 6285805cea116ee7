"""Training either stage: one way from a config to a bundle."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.data.loader import batches
from cogview_jax.data.prefetch import Prefetched
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.source import Source
from cogview_jax.runtime.faults import TolerateDiskErrors, at_work
from cogview_jax.runtime.hardware import machine
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.mesh import local_parts, place_batch
from cogview_jax.runtime.processes import (
    PREEMPTED,
    StopRequest,
    host_name,
    is_primary,
    log,
    primary_first,
)
from cogview_jax.runtime.progress import Progress
from cogview_jax.runtime.watchdog import Watchdog
from cogview_jax.tasks.announcement import StepsUnderWay, announcement, report_machine_changes
from cogview_jax.tasks.bundle_choice import (
    BuiltBundle,
    bundle_state,
    bundle_steps,
    bundle_written,
    check_bundle_step,
    described_bundle,
    is_current,
)
from cogview_jax.tasks.contents import contents
from cogview_jax.tasks.early_stopping import EarlyStopping
from cogview_jax.tasks.experiment import Experiment
from cogview_jax.tasks.monitor import Monitor
from cogview_jax.tasks.remote_workdir import check_described, held_workdir
from cogview_jax.tasks.run_setup import RunSetup, set_up
from cogview_jax.tasks.task import Validation
from cogview_jax.tasks.workdir import Workdir, flat_settings, resolved_settings
from cogview_jax.training.goodput import Goodput
from cogview_jax.training.loop import Hook, is_due, train
from cogview_jax.training.metric_means import MetricMeans
from cogview_jax.training.metrics import MetricsWriter
from cogview_jax.training.objective import Metrics
from cogview_jax.training.profiler import ProfilerWindow
from cogview_jax.training.state import TrainState
from cogview_jax.training.step import Step

#: What a user has to do after a fault.
_AGAIN = "run the same command again to go on"
#: How much longer one process may take to compile than another.
COMPILE_SECONDS = 1800


def run(experiment: Experiment, directory: str, stall_timeout: float = 0.0) -> int:
    """Trains what `experiment` describes in a workdir, or resumes the run that it holds.

    Every process of the run calls it.

    Args:
        experiment: what to train.
        directory: the workdir, on a file system that all processes share, or its address in a
            bucket (`remote_workdir`).
        stall_timeout: seconds without a finished step after which the process ends, 0 for never.

    Returns:
        0 when all steps are done, or PREEMPTED when SIGTERM came before; the state is saved then.
    """
    check_described(directory, experiment)
    stop = StopRequest()
    with held_workdir(directory) as workdir:
        status = _run(experiment, workdir, stall_timeout, stop)
    if stop.waited:
        # The thread that reads may wait for ever, and a regular exit waits for it.
        sys.stdout.flush()
        os._exit(status)
    return status


def _run(experiment: Experiment, workdir: Workdir, stall_timeout: float, stop: StopRequest) -> int:
    config = experiment.train
    goodput = Goodput(workdir.metrics / "goodput.json", writes=is_primary())
    moved = workdir.check(experiment)
    setup = set_up(experiment, workdir)  # before the data, which may take minutes to open
    source = primary_first(setup.task.source, "source opened")
    held = contents(experiment, workdir, source, moved)
    workdir.check_contents(moved, held)
    validation = setup.task.validation()

    with jax.set_mesh(setup.mesh), stop, setup.checkpointer() as checkpointer:
        with goodput.phase("restore"):
            state = setup.restored(checkpointer)
        if state is None:
            state = setup.initial()
        start = int(state.position)
        goodput.resume(start)
        if start:
            log(f"{workdir.shown}: continues after step {start} of {config.steps}")
            report_machine_changes(workdir.shown, checkpointer.notes.get("machine", {}))
        noted = checkpointer.notes.get("early_stopping")
        early_stopping = EarlyStopping(setup.best, config.stop_after, noted)
        this_run = _Run(setup, source, validation, checkpointer, early_stopping, goodput, start)
        built = bundle_written(workdir)
        if this_run.is_over(start) and is_current(built, experiment, checkpointer, start):
            why = f"all {start} steps were done before"
            if early_stopping.reached():
                why = f"the run ended at step {start} before: {early_stopping}"
            log(f"{workdir.shown}: {why}")
            return 0
        check_bundle_step(config, checkpointer, start)
        skipped = SkippedLog(workdir.path, max_skipped=experiment.data.max_skipped)
        kept = f"what {workdir.named(workdir.checkpoints)} holds is kept: {_AGAIN}"
        with this_run.batches(skipped) as local:
            # Nothing the user may have got wrong is left.
            workdir.claim(experiment, held)
            with at_work(kept):
                state = this_run.trained(state, local, stop, stall_timeout)
                count = jax.process_count()
                if line := skipped.describe(f"process 0 of {count}" if count > 1 else ""):
                    log(f"{workdir.path.name}: {workdir.named(line)}")
                done = int(state.position)
                if not this_run.is_over(done):
                    return PREEMPTED
                with goodput.phase("write"):
                    choices = this_run.bundle_choices(done, built)
                    if choices[0] != done:
                        del state  # It makes room.
                        state = setup.restored(checkpointer, choices)
                        assert state is not None, "it is asked for by its step"
                    chosen = int(state.position)
                    weights = bundle_state(setup.task.objective, config, state)
                    setup.task.write(weights, workdir.bundle)
                with TolerateDiskErrors()("the ledger", done):
                    goodput.record(done)
    averaged = ", the average of its weights" * config.averaged
    ending = f"{done} steps done"
    if done < config.steps:
        ending = f"ended at step {done} of {config.steps}, since {early_stopping}"
    log(f"{workdir.shown}: {ending}, bundle written (step {chosen}{averaged}); {goodput.summary()}")
    return 0


@dataclass(frozen=True)
class _Run:
    """A run that has its data and its place.

    Attributes:
        setup: what follows from its config.
        source: the records to train on.
        validation: what measures held-out records; None for nothing.
        checkpointer: keeps its checkpoints.
        early_stopping: counts its measurements.
        goodput: what its time is spent on.
        start: the step after which it begins or goes on.
    """

    setup: RunSetup
    source: Source[Any]
    validation: Validation | None
    checkpointer: Checkpointer
    early_stopping: EarlyStopping
    goodput: Goodput
    start: int

    def is_over(self, done: int) -> bool:
        """Whether no step is to follow step `done`."""
        return done >= self.setup.experiment.train.steps or self.early_stopping.reached()

    def batches(self, skipped: SkippedLog) -> contextlib.closing[Any]:
        """This process's part of the batches that follow step `start`, to be entered."""
        experiment = self.setup.experiment
        parts, ways = local_parts(self.setup.mesh)
        return contextlib.closing(
            batches(
                self.source,
                global_batch=experiment.train.global_batch,
                seed=experiment.seed,
                transform=self.setup.task.transform,
                skipped=skipped,
                start=self.start,
                parts=parts,
                ways=ways,
            )
        )

    def trained(
        self, state: TrainState, local: Iterator[Any], stop: StopRequest, stall_timeout: float
    ) -> TrainState:
        """The state after the last step, or after the one at which the run was asked to stop.

        The latter is saved.

        Args:
            state: of step `start`; it is used up.
            local: see `batches`.
            stop: asks the run to stop.
            stall_timeout: as of `run`.
        """
        setup, config = self.setup, self.setup.experiment.train
        described = described_bundle(setup.task, config, setup.shapes)
        means = MetricMeans(self.checkpointer.notes.get("means"))
        under_way = StepsUnderWay()
        with contextlib.ExitStack() as stack:
            placed = Prefetched(place_batch(batch, setup.mesh) for batch in local)
            stack.enter_context(contextlib.closing(placed))
            writer = stack.enter_context(self._metrics_writer(self._announced(state)))
            progress = stack.enter_context(
                Progress(
                    config.steps,
                    setup.workdir.path.name,
                    start=self.start,
                    shown=is_primary(),
                    ask=under_way.finished,
                )
            )
            progress.doing("waiting for the first batch")
            profiler = ProfilerWindow(setup.experiment.profile, setup.workdir.profile)
            stack.enter_context(contextlib.closing(profiler))
            watchdog = stack.enter_context(
                Watchdog(stall_timeout, f"process {jax.process_index()} on {host_name()}")
            )
            monitor = Monitor(
                setup.experiment,
                setup.workdir,
                setup.task,
                self.source,
                self.validation,
                self.early_stopping,
                writer,
                self.goodput,
                progress,
            )

            def save(step: int, state: TrainState, metrics: dict[str, float] | None) -> None:
                notes = {"machine": machine(), "means": means.sums} | described
                notes["early_stopping"] = self.early_stopping.notes
                self.checkpointer.save(step, setup.task.stored(state), metrics, notes)

            state = train(
                state,
                compiled_together(jax.jit(setup.step, donate_argnums=0), progress),
                placed,
                steps=self.start if self.early_stopping.reached() else config.steps,
                log_every=config.log_every,
                report=monitor.report,
                hooks=(
                    Hook("checkpoint", config.checkpoint_every, save),
                    Hook("preview", config.sample_every, monitor.sample),
                ),
                measurements=monitor.measurements(),
                enough=self.early_stopping.reached,
                goodput=self.goodput,
                watchdog=watchdog,
                profiler=profiler,
                means=means,
                stop=stop.reached,
                stop_waiting=stop.waiting,
                started=under_way.started if is_primary() else lambda step, metrics: None,
            )
            done = int(state.position)
            if not self.is_over(done):
                if done > self.start:
                    # The unbroken run has a checkpoint and its metrics at some of these steps.
                    regular = is_due(config.checkpoint_every, done, config.steps)
                    metrics = monitor.reported.get(done, means.means()) if regular else None
                    save(done, state, metrics)
                fate = "is saved" if self.checkpointer.wait() else "could not be saved"
                log(
                    f"{setup.workdir.shown}: asked to stop after step {done} of {config.steps},"
                    f" which {fate}; run the same command again to continue"
                )
        return state

    def bundle_choices(self, done: int, built: BuiltBundle | None) -> list[int]:
        """The steps that the bundle may be written from, the preferred one first.

        All checkpoints are on the disk then, and the preferred one is in this host's folder.

        Args:
            done: the last step.
            built: what the workdir's bundle is of.
        """
        self.checkpointer.wait()
        choices = bundle_steps(self.setup.experiment.train, self.checkpointer, done)
        if choices[0] == done:
            return choices
        # Where the best is damaged the next one will do, unless the bundle has the best.
        if built is not None and built.step == choices[0]:
            del choices[1:]
        if self.setup.workdir.complete is not None:
            del choices[1:]
            self.setup.workdir.complete(choices[0])
        return choices

    def _announced(self, state: TrainState) -> list[str]:
        """Says what is trained, on what and from where; those lines."""
        setup = self.setup
        lines = announcement(setup.experiment, self.source, state, setup.mesh, self.start)
        if self.validation is not None:
            lines.append(f"validation: {self.validation.describe()}")
        for line in lines:
            log(f"{setup.workdir.path.name}: {line}")
        return lines

    def _metrics_writer(self, announced: list[str]) -> MetricsWriter:
        """What writes metrics/, which also has the settings and the lines that were announced."""
        setup, settings = self.setup, resolved_settings(self.setup.experiment)
        code = f"```json\n{json.dumps(settings, indent=2, ensure_ascii=False)}\n```"
        results = ("loss", *setup.task.validation_metrics(), setup.best.name)
        return MetricsWriter(
            setup.workdir.metrics,
            texts={"config": code, "run": "\n\n".join(announced)},
            settings=dict(flat_settings(settings)),
            results=tuple(dict.fromkeys(results)),
        )


def compiled_together(step: Any, progress: Progress) -> Step[Any]:
    """A jitted step that no process runs before all processes have compiled it.

    Compiling takes minutes, and not the same time everywhere; the first collective of a step waits
    for seconds only (30 on CPUs). `progress` shows what the step is doing.
    """
    compiled = None

    def call(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        nonlocal compiled
        if compiled is None:
            log("compiling the step")
            progress.doing("compiling")
            compiled = step.lower(state, batch).compile()
            KVStoreSync(COMPILE_SECONDS).all_gather("compiled", True)
            progress.doing("first step")
        return compiled(state, batch)

    return call
