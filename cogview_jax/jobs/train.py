"""Training either stage: one way from a config to a bundle."""

import contextlib
import sys
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.data.pipeline import batches
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources import Source
from cogview_jax.jobs.experiment import CodecExperiment, Experiment, TrainConfig
from cogview_jax.jobs.image_tokenizer import ImageTokenizerJob
from cogview_jax.jobs.transformer import TransformerJob
from cogview_jax.jobs.workdir import Workdir
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path
from cogview_jax.runtime.hardware import peak_flops
from cogview_jax.runtime.mesh import make_mesh, place_batch
from cogview_jax.runtime.metrics import MetricsWriter
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.progress import Progress
from cogview_jax.training.loop import Hook, Measured, train
from cogview_jax.training.objective import Objective
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.state import TrainState, make_state, state_shapes
from cogview_jax.training.step import make_step


class Job(Protocol):
    """What the two stages differ in."""

    objective: Objective

    def source(self) -> Source:
        """The records, checked against the config."""

    def transform(self, record: Any, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """One row of a batch."""

    def initial(self, bundle: Bundle, state: TrainState) -> TrainState:
        """`state` with the weights of another bundle."""

    def draw(self, state: TrainState, source: Source) -> np.ndarray:
        """A picture that shows what the model can do, uint8 [h, w, 3]."""

    def write(self, state: TrainState, path: Path) -> None:
        """Writes the bundle."""


def run(experiment: Experiment, directory: str) -> None:
    """Trains what `experiment` describes in a workdir, or goes on with what it holds."""
    workdir = Workdir(directory)
    workdir.check(experiment)
    config, mesh = experiment.train, make_mesh(experiment.mesh)
    check_batch(config, mesh)
    job = make_job(experiment, workdir)
    source = job.source()
    optimizer = make_optimizer(experiment.optimizer, config.steps)
    rate = schedule(experiment.optimizer, config.steps)
    loss_scale = experiment.loss_scale if policy(experiment.precision).scales else None
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        shapes = state_shapes(job.objective, optimizer, mesh, loss_scale)
        checkpointer = stack.enter_context(Checkpointer(workdir.checkpoints, config.keep))
        state = checkpointer.restore(shapes)
        if state is None:
            state = make_state(job.objective, optimizer, shapes, experiment.seed, loss_scale)
            if experiment.init_from:
                state = job.initial(Bundle(experiment.init_from), state)
        start = int(state.position)
        # The bundle of a run that was made longer since is older than its checkpoint.
        written = workdir.bundle.exists() and Bundle(workdir.bundle).step == start
        if start >= config.steps and written:
            print(f"{workdir.path}: all {start} steps were done before", file=sys.stderr)
            return
        local = stack.enter_context(
            contextlib.closing(
                batches(
                    source,
                    global_batch=config.global_batch,
                    seed=experiment.seed,
                    transform=job.transform,
                    skipped=SkippedLog(workdir.path, max_skipped=experiment.data.max_skipped),
                    start=start,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                )
            )
        )
        # Nothing the user may have got wrong is left.
        workdir.claim(experiment)
        writer = stack.enter_context(MetricsWriter(workdir.metrics))
        progress = stack.enter_context(Progress(config.steps, workdir.path.name, start=start))
        per_second = throughput(job.objective, experiment)

        def report(measured: Measured) -> None:
            metrics = measured.metrics | per_second(measured.seconds_per_step)
            writer.scalars(measured.step, metrics)
            shown = {n: metrics[n] for n in ("loss", "tokens_per_second")}
            progress.update(measured.step - progress.done, **shown)

        def sample(step: int, state: TrainState) -> None:
            picture = job.draw(state, source)
            writer.images(step, "samples", picture)
            if jax.process_index() == 0:
                with atomic_path(workdir.samples / f"step_{step:08d}.png") as temporary:
                    Image.fromarray(picture).save(temporary)

        step = make_step(
            job.objective,
            optimizer,
            rate,
            seed=experiment.seed,
            accumulate=config.accumulate,
            loss_scale=loss_scale,
        )
        state = train(
            state,
            jax.jit(step, donate_argnums=0),
            (place_batch(batch, mesh) for batch in local),
            steps=config.steps,
            log_every=config.log_every,
            report=report,
            hooks=(
                Hook(config.checkpoint_every, checkpointer.save),
                Hook(config.sample_every, sample),
            ),
        )
        job.write(state, workdir.bundle)
    print(f"{workdir.path}: {config.steps} steps done, bundle written", file=sys.stderr)


def check_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """InputError where a batch cannot be split evenly over the mesh.

    The parts of an accumulated batch may be smaller than the mesh: every device then computes all
    of a part, which is said on standard error because it is slow.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.global_batch % ways:
        raise InputError(
            f"train.global_batch = {config.global_batch} cannot be split over mesh.data x mesh.fsdp"
            f" = {ways} devices: choose a multiple of {ways}"
        )
    rows = config.global_batch // config.accumulate
    if rows % ways:
        print(
            f"train.accumulate = {config.accumulate} leaves {rows} rows at a time, which {ways}"
            " devices cannot share: each computes them all",
            file=sys.stderr,
        )


def make_job(experiment: Experiment, workdir: Workdir) -> Job:
    """The stage an experiment is of."""
    if isinstance(experiment, CodecExperiment):
        return ImageTokenizerJob(experiment, workdir)
    return TransformerJob(experiment, workdir)


def throughput(objective: Objective, experiment: Experiment):
    """A function from seconds a step to tokens_per_second and mfu.

    mfu: model FLOPs a second over the peak of all devices (see `runtime.hardware`).
    """
    rows = experiment.train.global_batch
    peak = peak_flops(jax.devices()[0], policy(experiment.precision).compute)
    peak *= jax.device_count()

    def measure(seconds: float) -> dict[str, float]:
        return {
            "tokens_per_second": rows * objective.tokens_per_row / seconds,
            "mfu": rows * objective.flops_per_row / seconds / peak,
        }

    return measure
