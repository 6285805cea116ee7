"""The checkpoint and the weights that a run's bundle is written from."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.checkpoints.step_bundle import BUNDLE, named_arrays
from cogview_jax.checkpoints.stored_step import ITEMS
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import log
from cogview_jax.sampling.options import SamplingSettings
from cogview_jax.tasks.experiment import Experiment
from cogview_jax.tasks.task import Task
from cogview_jax.tasks.train_config import TrainConfig
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.training.loop import is_due
from cogview_jax.training.objective import Objective
from cogview_jax.training.state import TrainState, with_average


def bundle_steps(config: TrainConfig, checkpointer: Checkpointer, last: int) -> list[int]:
    """The checkpoints that a finished run's bundle may be written from, the preferred one first.

    `last` is the step of the newest.
    """
    if config.bundle_step == "best":
        if not (ranked := checkpointer.ranked_steps()):
            log(f"no checkpoint was measured by {config.best_metric}: the last one counts as best")
        return ranked or [last]
    if config.bundle_step == "last":
        return [last]
    if config.bundle_step > last:  # the run was ended early
        log(f"train.bundle_step = {config.bundle_step} was not reached: the last step is taken")
    return [min(config.bundle_step, last)]


def check_bundle_step(config: TrainConfig, checkpointer: Checkpointer, start: int) -> None:
    """InputError where the bundle's step has no checkpoint, and training will write none of it.

    start: the step that training goes on from.
    """
    step = config.bundle_step
    if not isinstance(step, int):
        return
    if step > start and not is_due(config.checkpoint_every, step, config.steps):
        raise InputError(
            f"train.bundle_step = {step} will have no checkpoint: they are written every"
            f" {config.checkpoint_every} steps (train.checkpoint_every) and after the last one,"
            f" {config.steps}"
        )
    if step <= start and not checkpointer.has(step):
        raise InputError(
            f"train.bundle_step = {step} has no checkpoint that can be read, and the run is past"
            f" it, at step {start}: choose a step that is in the folder of checkpoints, or last"
        )


class BuiltBundle(NamedTuple):
    """What a run's bundle was written from, and the sampling that it recommends."""

    path: Path
    step: int | None
    weights: str | None
    sampling: SamplingSettings | None


def bundle_written(workdir: Workdir) -> BuiltBundle | None:
    """The workdir's bundle; None where there is none to use."""
    if not workdir.bundle.exists():
        return None
    try:
        bundle = Bundle(workdir.bundle)
        return BuiltBundle(workdir.bundle, bundle.step, bundle.weights, bundle.sampling)
    except InputError as error:  # the checkpoint has all that the bundle is made of
        log(f"{workdir.named(error)}: it will be written again")
        return None


def is_current(
    built: BuiltBundle | None, experiment: Experiment, checkpointer: Checkpointer, last: int
) -> bool:
    """Whether the bundle of a finished run is the one that would be written now.

    That of a run that was made longer since is older than its checkpoint, and one with other
    weights, or one that recommends another sampling, is not what is asked for.

    Args:
        built: the bundle.
        experiment: what is asked for.
        checkpointer: of the run.
        last: the step of the newest checkpoint.

    Raises:
        InputError: another one would be written, but this may be the only one with the weights of
            the best step.
    """
    if built is None:
        return False
    config = experiment.train
    sampling = getattr(experiment, "sampling", None)  # image tokenizers have none
    step = bundle_steps(config, checkpointer, last)[0]
    if built[1:] == (step, config.weights, sampling):
        return True
    if config.bundle_step == "best" and built.step and not checkpointer.has(built.step):
        # It may be better than all that is left, and nothing else holds its weights.
        raise InputError(
            f"{built.path} is of step {built.step}, whose checkpoint is gone or damaged: move it"
            " away to have the bundle written from the best that is left"
        )
    return False


def described_bundle(task: Task, config: TrainConfig, shapes: TrainState) -> dict[str, Any]:
    """The note by which a checkpoint opens as the bundle that would be written from it.

    `shapes` is of the whole state; its arrays are told by their names.
    """
    fields = {
        field: named_arrays(item, getattr(shapes, field))
        for item, field in ITEMS.items()
        if item in ("params", "extras", "ema")
    }
    names = bundle_state(task.objective, config, dataclasses.replace(shapes, **fields))
    return {BUNDLE: task.described(task.objective.bundle_values(names.values))}


def bundle_state(objective: Objective[Any], config: TrainConfig, state: TrainState) -> TrainState:
    """`state` with the weights that measurements, previews and the bundle take."""
    return with_average(objective, state) if config.averaged else state
