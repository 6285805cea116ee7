"""What the config of a run decides before its data is opened."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.checkpoints.retention import Retention
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import make_mesh
from cogview_jax.runtime.paths import named_by
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.processes import log
from cogview_jax.tasks.best_metric import BestMetric, find_best_metric
from cogview_jax.tasks.codec import CodecTask
from cogview_jax.tasks.experiment import CodecExperiment, Experiment
from cogview_jax.tasks.lora import LoRATask
from cogview_jax.tasks.monitor import check_benchmark
from cogview_jax.tasks.task import Task
from cogview_jax.tasks.train_config import TrainConfig
from cogview_jax.tasks.transformer import TransformerTask
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.training.loss_scale import LossScaleConfig
from cogview_jax.training.optimizer import make_optimizer, muon_schedule, schedule
from cogview_jax.training.state import TrainState, make_state, restart_average, state_shapes
from cogview_jax.training.step import Step, make_step


@dataclass(frozen=True)
class RunSetup:
    """The parts of a run that follow from its config.

    Attributes:
        experiment: the config.
        workdir: of the run.
        mesh: the devices.
        task: what is trained.
        optimizer: its transformation.
        loss_scale: how losses are scaled; None where the precision needs no scale.
        step: the training step, not jitted.
        shapes: of the whole state.
        best: the metric that says which checkpoint is best.
    """

    experiment: Experiment
    workdir: Workdir
    mesh: jax.sharding.Mesh
    task: Task
    optimizer: optax.GradientTransformation
    loss_scale: LossScaleConfig | None
    step: Step[Any]
    shapes: TrainState
    best: BestMetric

    def checkpointer(self) -> Checkpointer:
        """Keeps the checkpoints of the run; to be entered."""
        config, best, workdir = self.experiment.train, self.best, self.workdir
        retention = Retention(
            *(config.keep, config.keep_every, config.keep_best, best.name),
            highest=best.highest,
            optional=bool(best.phase),
            pinned=config.bundle_step if isinstance(config.bundle_step, int) else 0,
        )
        return Checkpointer(
            workdir.checkpoints, retention, damaged=workdir.damaged, share=workdir.share
        )

    def restored(
        self, checkpointer: Checkpointer, choices: Sequence[int] | None = None
    ) -> TrainState | None:
        """The state of the newest checkpoint, or of the first of `choices` that is whole."""
        state = checkpointer.restore(self.task.stored(self.shapes), choices)
        return None if state is None else self.task.restored(state, self.shapes)

    def initial(self) -> TrainState:
        """The state that a run without a checkpoint begins with.

        Raises:
            InputError: `init_from` cannot be opened, or does not fit.
        """
        experiment, task = self.experiment, self.task
        with named_by("init_from", experiment.init_from):
            bundle = open_bundle(experiment.init_from) if experiment.init_from else None
            if bundle is not None:
                task.check(bundle)
            log("initialising the weights")
            state = make_state(
                task.objective,
                self.optimizer,
                self.shapes,
                experiment.seed,
                self.loss_scale,
                experiment.train.ema_decay,
            )
            return restart_average(task.objective, task.initial(bundle, state))


def set_up(experiment: Experiment, workdir: Workdir) -> RunSetup:
    """What follows from a config; nothing is computed and no data is opened.

    Raises:
        InputError: parts of the config do not fit together, or do not fit the devices.
    """
    config, mesh = experiment.train, make_mesh(experiment.mesh)
    check_batch(config, mesh)
    task = make_task(experiment, workdir)
    optimizer = make_optimizer(experiment.optimizer, config.steps)
    loss_scale = experiment.loss_scale if policy(experiment.precision).scales else None
    step = make_step(
        task.objective,
        optimizer,
        schedule(experiment.optimizer, config.steps),
        seed=experiment.seed,
        accumulate=config.accumulate,
        loss_scale=loss_scale,
        ema_decay=config.ema_decay,
        muon_rate=muon_schedule(experiment.optimizer, config.steps),
    )
    with jax.set_mesh(mesh):
        shapes = state_shapes(task.objective, optimizer, mesh, loss_scale, config.ema_decay)
        best = find_best_metric(
            config,
            task.validation_metrics(),
            check_benchmark(config, trained_task(experiment)),
            lambda: step_metrics(step, shapes, task.row_shapes(), config.global_batch),
        )
    return RunSetup(experiment, workdir, mesh, task, optimizer, loss_scale, step, shapes, best)


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
