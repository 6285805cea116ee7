"""One run of the stability experiment, watched from inside."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from cogview_jax.models.activation_max import ACTIVATION_MAX, layer_activation_max
from cogview_jax.runtime.files import atomic_path
from cogview_jax.runtime.progress import Progress
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.experiment import TransformerExperiment
from cogview_jax.tokenizers.layout import Example
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import initial_state
from cogview_jax.training.step import make_step

METRICS = ("loss", "text_loss", "image_loss", "loss_scale", "overflow")
EXTREME = ("main", "scores", "norm_inputs")


@dataclasses.dataclass(frozen=True)
class Record:
    """What was seen, a row for each step that was tried, skipped ones included.

    loss, text_loss, image_loss, loss_scale, overflow (1 where the step was skipped): float32 [S].
    main, scores, norm_inputs: float32 [S, L], the largest absolute values in each layer, infinite
    or no number where float16's range ran out (see `models.activation_max`).
    """

    loss: np.ndarray
    text_loss: np.ndarray
    image_loss: np.ndarray
    loss_scale: np.ndarray
    overflow: np.ndarray
    main: np.ndarray
    scores: np.ndarray
    norm_inputs: np.ndarray

    @property
    def steps(self) -> int:
        """How many steps were tried."""
        return len(self.loss)


def record(
    experiment: TransformerExperiment,
    objective: SequenceObjective,
    batches: Iterator[Example],
    label: str,
) -> Record:
    """Trains until the steps are done, or the loss scale at its floor has run out of patience.

    The extremes are those of the forward pass that a step differentiates: of its own parameters
    and its own batch, also where the step is then skipped because something overflowed. A skipped
    step leaves the parameters as they are and the next one tries the next batch.
    """
    steps, scale, model = experiment.train.steps, experiment.loss_scale, objective.model
    optimizer = make_optimizer(experiment.optimizer, steps)
    rate = schedule(experiment.optimizer, steps)
    step = make_step(objective, optimizer, rate, seed=experiment.seed, loss_scale=scale)

    def watched(state, batch):
        tokens, positions = batch.tokens, batch.positions
        _, sown = model.apply({"params": state.params}, tokens, positions, mutable=ACTIVATION_MAX)
        state, metrics = step(state, batch)
        return state, metrics | layer_activation_max(sown)

    watched = jax.jit(watched, donate_argnums=0)
    state = jax.jit(lambda: unbox(initial_state(objective, optimizer, experiment.seed, scale)))()
    rows = []
    with Progress(steps, label) as progress:
        for _ in range(steps):
            state, seen = watched(state, next(batches))
            seen = jax.device_get(seen)
            rows.append([seen[field.name] for field in dataclasses.fields(Record)])
            progress.update(loss=float(seen["loss"]), main=float(seen["main"].max()))
            if seen["stuck"]:
                break
    return Record(*(np.stack(column) for column in zip(*rows, strict=True)))


def save(path: Path, record: Record, experiment: TransformerExperiment) -> None:
    """Writes a record beside the experiment it is of."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, experiment=_text(experiment), **dataclasses.asdict(record))


def load(path: Path, experiment: TransformerExperiment) -> Record | None:
    """The record that an earlier run of the same experiment left at `path`, or None."""
    if not path.exists():
        return None
    with np.load(path) as file:
        if file["experiment"].item() != _text(experiment):
            return None
        return Record(*(file[field.name] for field in dataclasses.fields(Record)))


def _text(experiment: TransformerExperiment) -> str:
    return json.dumps(dataclasses.asdict(experiment), sort_keys=True)
