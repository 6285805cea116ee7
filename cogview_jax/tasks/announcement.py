"""What a run says before it begins, and how far it is while nobody waits for its steps."""

import math
from collections import deque
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from cogview_jax.data.sources.source import Source
from cogview_jax.runtime.hardware import machine
from cogview_jax.runtime.processes import say
from cogview_jax.tasks.experiment import CodecExperiment, Experiment, TransformerExperiment
from cogview_jax.tokenizers.layout import make_layout
from cogview_jax.training.state import TrainState


@runtime_checkable
class Described(Protocol):
    """A source that knows more of itself than its length."""

    def describe(self) -> str:
        """Its records, captions, and what was ignored, in one line."""


def announcement(
    experiment: Experiment, source: Source, state: TrainState, mesh: jax.sharding.Mesh, start: int
) -> list[str]:
    """What a training run will do, in a few lines.

    Args:
        experiment: what is trained.
        source: the records it reads.
        state: its state, or the shapes of that.
        mesh: the devices it runs on.
        start: how many steps are done.
    """
    config, devices = experiment.train, mesh.devices.flat
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    sizes = ", ".join(f"mesh.{axis} {size}" for axis, size in mesh.shape.items())
    of = f"{mesh.devices.size} x {devices[0].device_kind}"
    model, attention = _sizes(experiment)
    return [
        f"data: {described(source)}",
        f"model: {experiment.stage}, {model}; {parameters(state):,} parameters",
        f"devices: {of} ({sizes}); precision {experiment.precision}{attention}",
        f"steps: {start:,} of {config.steps:,} done; {config.global_batch:,} rows a step{parts}",
    ]


def described(source: Source) -> str:
    """The records of a source, in one line."""
    return source.describe() if isinstance(source, Described) else f"{len(source):,} records"


def parameters(state: TrainState) -> int:
    """How many numbers are trained."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))


def _sizes(experiment: Experiment) -> tuple[str, str]:
    """The sizes of the model and its rows; and its attention, where it has one."""
    if isinstance(experiment, CodecExperiment):
        model = experiment.model
        size, grid = model.image_size, model.grid
        codes = f"{grid} x {grid} codes of {model.codebook:,}"
        return f"images of {size} x {size} pixels as {codes}", ""
    layout = make_layout(experiment.layout, experiment.vocabulary)
    images = " and ".join(f"{region.grid} x {region.grid}" for region in layout.images)
    sequence = f"{layout.task} sequences of {layout.length:,} tokens"
    texts = f"up to {experiment.layout.text_length:,} of text, {images} codes"
    attention = _attention(experiment)
    return f"{sequence} ({texts}), {experiment.vocabulary.size:,} ids", f", attention {attention}"


def _attention(experiment: TransformerExperiment) -> str:
    """The kind of attention, and which programs compute it and decode."""
    model, programs = experiment.model, experiment.programs()
    attention = programs.attention
    if attention == "cudnn" and model.drop_rates[1]:
        attention = "xla, which drops weights"
    kind = f"dense ({attention})"
    if model.sparse:
        kind = f"sparse (window {model.window} x {model.window_blocks}, {model.pivots} pivots)"
    return f"{kind}, decoding {programs.decoding}"


def say_what_moved(workdir: Path, before: dict[str, Any]) -> None:
    """One line where a run goes on with other cores, devices or another jax than it was saved with.

    before: what `machine()` said then; empty for checkpoints that do not say.
    """
    now = machine()
    names = [name for name, was in before.items() if was != now.get(name)]
    moved = [f"{name} {before[name]} -> {now.get(name, 'unknown')}" for name in names]
    if moved:
        say(
            f"{workdir}: goes on with {', '.join(moved)}: the last bits of its numbers may no"
            " longer be those of the unbroken run"
        )


class StepsUnderWay:
    """Steps that were started, and which of them the devices have finished.

    Nobody waits for any: a step's loss is ready once the step is done. One thread starts steps,
    another asks.
    """

    def __init__(self):
        """None was started."""
        self._started: deque[tuple[int, jax.Array]] = deque()

    def started(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """The step that gives `metrics` is on its way."""
        self._started.append((step, metrics["loss"]))

    def finished(self) -> tuple[int, dict[str, Any]] | None:
        """The last step that is done, and its loss; None where none is since the last call."""
        last = None
        while self._started and self._started[0][1].is_ready():
            last = self._started.popleft()
        return None if last is None else (last[0], {"loss": float(last[1])})
