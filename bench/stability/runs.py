"""Runs the variants of the stability experiment one after the other, and reports on them."""

import contextlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.stability import figures, recording
from bench.stability.report import report
from cogview_jax.data.loader import batches
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.tasks.experiment import TransformerExperiment
from cogview_jax.tasks.transformer import TransformerTask
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.layout import Example

KINDS = ("text", "image")


def run(
    experiments: Mapping[str, TransformerExperiment], workdir: Path, out: Path
) -> dict[str, Any]:
    """Runs the `experiments` that have no record in `workdir`, and reports on all of them.

    Args:
        experiments: the experiments by the names of their variants. All see the same batches of
            the token store.
        workdir: the folder of the records NAME.npz, and of the store unless an experiment names
            another.
        out: the folder for the figures, the table and results.json.

    Returns:
        The content of results.json; see `report`.
    """
    records = {}
    for name, experiment in experiments.items():
        path = workdir / f"{name}.npz"
        record = recording.load(path, experiment)
        if record is None:
            with _opened(experiment, workdir) as (task, stream):
                record = recording.record(experiment, task.objective, stream, name)
            recording.save(path, record, experiment)
        else:
            print(f"{path}: was recorded before", file=sys.stderr)
        records[name] = record
    with _opened(experiment, workdir) as (_, stream):
        constant = constant_losses(stream, experiment.train.steps, experiment.vocabulary.size)
    models = {name: experiment.model for name, experiment in experiments.items()}
    figures.draw(records, models, constant, out)
    results = report(records, experiments, constant, out)
    print(f"figures and table in {out}", file=sys.stderr)
    return results


def constant_losses(stream: Iterator[Example], steps: int, vocabulary: int) -> dict[str, float]:
    """Returns {"text_loss", "image_loss"} of the best fixed distribution over all ids.

    It is the distribution of the targets in the first `steps` of `stream`, where text and image
    tokens have the same weight. The losses are cross-entropies over these batches.
    """
    counts = {kind: np.zeros(vocabulary) for kind in KINDS}
    for batch in itertools.islice(stream, steps):
        for kind, count in counts.items():
            weights = getattr(batch, f"{kind}_weights").ravel()
            count += np.bincount(batch.targets.ravel(), weights, vocabulary)
    total = sum(counts.values())
    entropies = -np.log(np.where(total > 0, total, 1) / total.sum())
    return {
        f"{kind}_loss": float(count @ entropies / count.sum()) for kind, count in counts.items()
    }


@contextlib.contextmanager
def _opened(
    experiment: TransformerExperiment, workdir: Path
) -> Iterator[tuple[TransformerTask, Iterator[Example]]]:
    """Returns the task of an experiment, and its batches from the first on."""
    task = TransformerTask(experiment, Workdir(workdir))
    stream = batches(
        task.source(),
        global_batch=experiment.train.global_batch,
        seed=experiment.seed,
        transform=task.transform,
        skipped=SkippedLog(workdir, max_skipped=experiment.data.max_skipped),
    )
    with contextlib.closing(stream):
        yield task, stream
