"""The lines that a run prints before it begins, and which of its steps are finished."""

import math
from collections import deque
from typing import Any

import jax

from cogview_jax.data.sources.mixture import Mixture
from cogview_jax.data.sources.source import Source, described
from cogview_jax.runtime.hardware import machine
from cogview_jax.runtime.processes import log
from cogview_jax.tasks.experiment import CodecExperiment, Experiment, TransformerExperiment
from cogview_jax.tokenizers.layout import make_layout
from cogview_jax.training.state import TrainState


def announcement(
    experiment: Experiment, source: Source, state: TrainState, mesh: jax.sharding.Mesh, start: int
) -> list[str]:
    """The data, model, devices and steps of a training run, in a line each.

    Args:
        experiment: what is trained.
        source: the records it reads.
        state: its state, or the shapes of its state.
        mesh: the devices it runs on.
        start: how many steps are done.
    """
    config, devices = experiment.train, mesh.devices.flat
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    sizes = ", ".join(f"mesh.{axis} {size}" for axis, size in mesh.shape.items())
    of = f"{mesh.devices.size} x {devices[0].device_kind}"
    model, attention = _sizes(experiment)
    trained = f"{parameters(state):,} parameters"
    if isinstance(experiment, TransformerExperiment) and experiment.lora.rank:
        frozen = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.model_state))
        trained = f"{trained} of adapters and {frozen:,} frozen"
    rows = config.steps * config.global_batch
    return [
        f"data: {described(source)}",
        *_passes(source, rows),
        f"model: {experiment.stage}, {model}; {trained}",
        f"devices: {of} ({sizes}); precision {experiment.precision}{attention}",
        f"steps: {start:,} of {config.steps:,} done; {config.global_batch:,} rows a step{parts}",
    ]


def _passes(source: Source, rows: int) -> list[str]:
    """How often so many rows read each part of a mixture; nothing of any other source."""
    if not isinstance(source, Mixture):
        return []
    shown = [
        f"{part.name} {rows * share / len(part.source):.3g} times"
        for part, share in zip(source.parts, source.interleaving.shares, strict=True)
    ]
    return [f"parts: {rows:,} rows in all steps read {', '.join(shown)}, each by its own epochs"]


def parameters(state: TrainState) -> int:
    """The number of trained parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))


def _sizes(experiment: Experiment) -> tuple[str, str]:
    """The sizes of the model and its rows, and its attention if it has one."""
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
    if programs.fused and model.weight_dropout:
        attention = "blocks, which drop weights"
    kind = f"dense ({attention})"
    if model.sparse:
        kind = f"sparse (window {model.window} x {model.window_blocks}, {model.pivots} pivots)"
    return f"{kind}, decoding {programs.decoding}"


def report_machine_changes(workdir: str, before: dict[str, Any]) -> None:
    """Prints a line if a run resumes with other cores, devices or jax than it was saved with.

    before: what `machine()` returned then; empty for checkpoints that do not record it.
    """
    now = machine()
    names = [name for name, was in before.items() if was != now.get(name)]
    moved = [f"{name} {before[name]} -> {now.get(name, 'unknown')}" for name in names]
    if moved:
        log(
            f"{workdir}: resumes with {', '.join(moved)}: the last bits of its numbers may no"
            " longer be those of the unbroken run"
        )


class StepsUnderWay:
    """Steps that were started, and which of them the devices have finished.

    No call waits for the devices: the loss of a step is ready once the step is done. One thread
    starts steps, another calls `finished`.
    """

    def __init__(self) -> None:
        """No step was started."""
        self._started: deque[tuple[int, Any]] = deque()

    def started(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Notes that a step was started, which will return `metrics`."""
        self._started.append((step, metrics["loss"]))

    def finished(self) -> tuple[int, dict[str, Any]] | None:
        """The last step that was finished since the last call, and its loss; None if none was."""
        last = None
        while self._started and self._started[0][1].is_ready():
            last = self._started.popleft()
        return None if last is None else (last[0], {"loss": float(last[1])})
