"""Training either stage: one way from a config to a bundle."""

import contextlib
import json
import os
import sys
from collections.abc import Collection
from typing import Any

import jax

from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.checkpoints.retention import Retention
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.data.loader import batches
from cogview_jax.data.prefetch import Prefetched
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import TolerateDiskErrors, at_work
from cogview_jax.runtime.hardware import machine
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.mesh import local_parts, make_mesh, place_batch
from cogview_jax.runtime.paths import named_by
from cogview_jax.runtime.precision import policy
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
from cogview_jax.tasks.best_metric import find_best_metric
from cogview_jax.tasks.bundle_choice import (
    bundle_state,
    bundle_steps,
    bundle_written,
    check_bundle_step,
    described_bundle,
)
from cogview_jax.tasks.codec import CodecTask
from cogview_jax.tasks.contents import contents
from cogview_jax.tasks.early_stopping import EarlyStopping
from cogview_jax.tasks.experiment import CodecExperiment, Experiment
from cogview_jax.tasks.lora import LoRATask
from cogview_jax.tasks.monitor import Monitor, check_benchmark
from cogview_jax.tasks.remote_workdir import check_described, held_workdir
from cogview_jax.tasks.task import Task
from cogview_jax.tasks.train_config import TrainConfig
from cogview_jax.tasks.transformer import TransformerTask
from cogview_jax.tasks.workdir import Workdir, flat_settings, resolved_settings
from cogview_jax.training.goodput import Goodput
from cogview_jax.training.loop import Hook, is_due, train
from cogview_jax.training.metric_means import MetricMeans
from cogview_jax.training.metrics import MetricsWriter
from cogview_jax.training.objective import Metrics
from cogview_jax.training.optimizer import make_optimizer, muon_schedule, schedule
from cogview_jax.training.profiler import ProfilerWindow
from cogview_jax.training.state import (
    TrainState,
    make_state,
    restart_average,
    state_shapes,
)
from cogview_jax.training.step import Step, make_step

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
    goodput = Goodput(workdir.metrics / "goodput.json", writes=is_primary())
    moved = workdir.check(experiment)
    config, mesh = experiment.train, make_mesh(experiment.mesh)
    check_batch(config, mesh)
    task = make_task(experiment, workdir)
    optimizer = make_optimizer(experiment.optimizer, config.steps)
    rate = schedule(experiment.optimizer, config.steps)
    loss_scale = experiment.loss_scale if policy(experiment.precision).scales else None
    step = make_step(
        task.objective,
        optimizer,
        rate,
        seed=experiment.seed,
        accumulate=config.accumulate,
        loss_scale=loss_scale,
        ema_decay=config.ema_decay,
        muon_rate=muon_schedule(experiment.optimizer, config.steps),
    )

    # What the config alone decides comes before the data, which may take minutes to open.
    with jax.set_mesh(mesh):
        shapes = state_shapes(task.objective, optimizer, mesh, loss_scale, config.ema_decay)
        best = find_best_metric(
            config,
            task.validation_metrics(),
            check_benchmark(config, trained_task(experiment)),
            lambda: step_metrics(step, shapes, task.row_shapes(), config.global_batch),
        )
    source = primary_first(task.source, "source opened")
    held = contents(experiment, workdir, source, moved)
    workdir.check_contents(moved, held)
    validation = task.validation()

    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        stack.enter_context(stop)
        retention = Retention(
            *(config.keep, config.keep_every, config.keep_best, best.name),
            highest=best.highest,
            optional=bool(best.phase),
            pinned=config.bundle_step if isinstance(config.bundle_step, int) else 0,
        )
        checkpointer = stack.enter_context(
            Checkpointer(
                workdir.checkpoints, retention, damaged=workdir.damaged, share=workdir.share
            )
        )
        with goodput.phase("restore"):
            state = checkpointer.restore(task.stored(shapes))
            state = None if state is None else task.restored(state, shapes)
        if state is None:
            seed, decay = experiment.seed, config.ema_decay
            with named_by("init_from", experiment.init_from):
                bundle = open_bundle(experiment.init_from) if experiment.init_from else None
                if bundle is not None:
                    task.check(bundle)
                log("initialising the weights")
                state = make_state(task.objective, optimizer, shapes, seed, loss_scale, decay)
                state = restart_average(task.objective, task.initial(bundle, state))
        start = int(state.position)
        goodput.resume(start)
        if start:
            log(f"{workdir.shown}: continues after step {start} of {config.steps}")
            report_machine_changes(workdir.shown, checkpointer.notes.get("machine", {}))
        noted = checkpointer.notes.get("early_stopping")
        early_stopping = EarlyStopping(best, config.stop_after, noted)
        ended = early_stopping.reached()
        last = start if ended else config.steps
        # The bundle of a run that was made longer since is older than its checkpoint, and one with
        # other weights, or one that recommends another sampling, is not what is asked for.
        built = bundle_written(workdir)
        if start >= last and built is not None:
            sampling = getattr(experiment, "sampling", None)  # image tokenizers have none
            if built == (bundle_steps(config, checkpointer, start)[0], config.weights, sampling):
                why = f"the run ended at step {start} before: {early_stopping}"
                log(f"{workdir.shown}: {why if ended else f'all {start} steps were done before'}")
                return 0
            of_step = built[0]
            if config.bundle_step == "best" and of_step and not checkpointer.has(of_step):
                # It may be better than all that is left, and nothing else holds its weights.
                raise InputError(
                    f"{workdir.bundle} is of step {of_step}, whose checkpoint is gone or damaged:"
                    " move it away to have the bundle written from the best that is left"
                )
        check_bundle_step(config, checkpointer, start)
        skipped = SkippedLog(workdir.path, max_skipped=experiment.data.max_skipped)
        parts, ways = local_parts(mesh)
        local = stack.enter_context(
            contextlib.closing(
                batches(
                    source,
                    global_batch=config.global_batch,
                    seed=experiment.seed,
                    transform=task.transform,
                    skipped=skipped,
                    start=start,
                    parts=parts,
                    ways=ways,
                )
            )
        )
        # Nothing the user may have got wrong is left.
        workdir.claim(experiment, held)
        place = workdir.named(workdir.checkpoints)
        kept = f"what {place} holds is kept: run the same command again to go on"
        stack.enter_context(at_work(kept))
        placed = Prefetched(place_batch(batch, mesh) for batch in local)
        stack.enter_context(contextlib.closing(placed))
        lines = announcement(experiment, source, state, mesh, start)
        if validation is not None:
            lines.append(f"validation: {validation.describe()}")
        for line in lines:
            log(f"{workdir.path.name}: {line}")
        settings = resolved_settings(experiment)
        writer = stack.enter_context(
            MetricsWriter(
                workdir.metrics,
                texts={"config": _as_code(settings), "run": "\n\n".join(lines)},
                settings=dict(flat_settings(settings)),
                results=tuple(dict.fromkeys(("loss", *task.validation_metrics(), best.name))),
            )
        )
        under_way = StepsUnderWay()
        progress = stack.enter_context(
            Progress(
                config.steps,
                workdir.path.name,
                start=start,
                shown=is_primary(),
                ask=under_way.finished,
            )
        )
        progress.doing("waiting for the first batch")
        profiler = ProfilerWindow(experiment.profile, workdir.profile)
        stack.enter_context(contextlib.closing(profiler))
        watchdog = stack.enter_context(
            Watchdog(stall_timeout, f"process {jax.process_index()} on {host_name()}")
        )
        described = described_bundle(task, config, shapes)
        means = MetricMeans(checkpointer.notes.get("means"))
        monitor = Monitor(
            experiment,
            workdir,
            task,
            source,
            validation,
            early_stopping,
            writer,
            goodput,
            progress,
        )

        def notes() -> dict[str, Any]:
            noted = {"machine": machine(), "means": means.sums} | described
            return noted | {"early_stopping": early_stopping.notes}

        def save(step: int, state: TrainState, metrics: dict[str, float]) -> None:
            checkpointer.save(step, task.stored(state), metrics, notes())

        state = train(
            state,
            compiled_together(jax.jit(step, donate_argnums=0), progress),
            placed,
            steps=last,
            log_every=config.log_every,
            report=monitor.report,
            hooks=(
                Hook("checkpoint", config.checkpoint_every, save),
                Hook("preview", config.sample_every, monitor.sample),
            ),
            measurements=monitor.measurements(),
            enough=early_stopping.reached,
            goodput=goodput,
            watchdog=watchdog,
            profiler=profiler,
            means=means,
            stop=stop.reached,
            stop_waiting=stop.waiting,
            started=under_way.started if is_primary() else lambda step, metrics: None,
        )
        count = jax.process_count()
        if line := skipped.describe(f"process 0 of {count}" if count > 1 else ""):
            log(f"{workdir.path.name}: {workdir.named(line)}")
        done = int(state.position)
        if done < config.steps and not early_stopping.reached():
            if done > start:
                # The unbroken run has a checkpoint and its metrics at some of these steps.
                regular = is_due(config.checkpoint_every, done, config.steps)
                metrics = monitor.reported.get(done, means.means()) if regular else None
                checkpointer.save(done, task.stored(state), metrics, notes())
            fate = "which is saved" if checkpointer.wait() else "which could not be saved"
            log(
                f"{workdir.shown}: asked to stop after step {done} of {config.steps}, {fate}; run"
                " the same command again to continue"
            )
            return PREEMPTED
        with goodput.phase("write"):
            checkpointer.wait()
            choices = bundle_steps(config, checkpointer, done)
            if choices[0] != done:
                del state
                # Where the best is damaged the next one will do, unless the bundle has the best.
                if built is not None and built[0] == choices[0]:
                    del choices[1:]
                if workdir.complete is not None:
                    del choices[1:]
                    workdir.complete(choices[0])
                restored = checkpointer.restore(task.stored(shapes), choices)
                assert restored is not None, "it is asked for by its step"
                state = task.restored(restored, shapes)
            chosen = int(state.position)
            task.write(bundle_state(task.objective, config, state), workdir.bundle)
        with TolerateDiskErrors()("the ledger", done):
            goodput.record(done)
    averaged = ", the average of its weights" * config.averaged
    ending = f"{done} steps done"
    if done < config.steps:
        ending = f"ended at step {done} of {config.steps}, since {early_stopping}"
    log(f"{workdir.shown}: {ending}, bundle written (step {chosen}{averaged}); {goodput.summary()}")
    return 0


def _as_code(settings: dict[str, Any]) -> str:
    """Markdown that shows settings as they stand in config.json."""
    return f"```json\n{json.dumps(settings, indent=2, ensure_ascii=False)}\n```"


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


def check_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """InputError where a batch cannot be split evenly over the mesh.

    The parts of an accumulated batch may have fewer rows than the mesh has devices. Every device
    then computes all of a part, which is slow: a line on standard error says so.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.global_batch % ways:
        raise InputError(
            f"train.global_batch = {config.global_batch} cannot be split over mesh.data x mesh.fsdp"
            f" = {ways} devices: choose a multiple of {ways}"
        )
    rows = config.global_batch // config.accumulate
    if rows % ways:
        log(
            f"train.accumulate = {config.accumulate} leaves {rows} rows at a time, which {ways}"
            " devices cannot share: each computes them all"
        )


def step_metrics(
    step: Step[Any], state: TrainState, row: Any, global_batch: int
) -> Collection[str]:
    """The names of the metrics of a step, which is traced and not run.

    Args:
        step: not jitted.
        state: the shapes of its state.
        row: the shapes of one row of its batch.
        global_batch: the rows of the batch.
    """
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((global_batch, *leaf.shape), leaf.dtype), row
    )
    _, metrics = jax.eval_shape(step, state, batch)
    return {*metrics} - {"stuck"}


def trained_task(experiment: Experiment) -> str | None:
    """The task of the transformer that is trained; None for an image tokenizer."""
    return None if isinstance(experiment, CodecExperiment) else experiment.layout.task


def make_task(experiment: Experiment, workdir: Workdir) -> Task:
    """The task of an experiment, by its stage."""
    if isinstance(experiment, CodecExperiment):
        return CodecTask(experiment, workdir)
    if experiment.lora.rank:
        return LoRATask(experiment, workdir)
    return TransformerTask(experiment, workdir)
