"""Records the extreme values of one run of the stability experiment."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from cogview_jax.models.activation_max import ACTIVATION_MAX, layer_activation_max
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path
from cogview_jax.runtime.progress import Progress
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.experiment import TransformerExperiment
from cogview_jax.tasks.workdir import resolved_settings
from cogview_jax.tokenizers.layout import Example
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import initial_state
from cogview_jax.training.step import make_step

METRICS = ("loss", "text_loss", "image_loss", "loss_scale", "overflow")
EXTREME = ("main", "scores", "norm_inputs")


@dataclasses.dataclass(frozen=True)
class Record:
    """The values of a run, with a row for each step that was tried, also if it was skipped.

    Of type float32 [S]: loss, text_loss, image_loss, loss_scale, and overflow, which is 1 if the
    step was skipped. Of type float32 [S, L]: main, scores and norm_inputs, the largest absolute
    values in each layer. They are infinite or no number if they are beyond the range of float16
    (see `models.activation_max`).
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
        """Returns how many steps were tried."""
        return len(self.loss)


def record(
    experiment: TransformerExperiment,
    objective: SequenceObjective,
    batches: Iterator[Example],
    label: str,
) -> Record:
    """Trains until the steps are done, or until too many steps overflow at the least loss scale.

    The extreme values are those of the forward pass that a step differentiates, also if the step
    is then skipped because something overflowed. A skipped step does not change the parameters, and
    the next step tries the next batch.
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
    """Writes a record together with its experiment."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, experiment=_text(experiment), **dataclasses.asdict(record))


def load(path: Path, experiment: TransformerExperiment) -> Record | None:
    """Returns the record of an earlier run of the same experiment at `path`, or None."""
    if not path.exists():
        return None
    with np.load(path) as file:
        if not _describes(file["experiment"].item(), experiment):
            return None
        return Record(*(file[field.name] for field in dataclasses.fields(Record)))


def _text(experiment: TransformerExperiment) -> str:
    return json.dumps(resolved_settings(experiment), sort_keys=True)


def _describes(text: str, experiment: TransformerExperiment) -> bool:
    """Returns whether `text` describes the experiment, also by earlier names of settings."""
    try:
        return build(TransformerExperiment, json.loads(text)) == experiment
    except InputError:
        return False
