"""Prepares a token store on a Ray cluster: its shards are tasks of actors that keep the codec.

What an actor does is what a process of `preparation.prepare` does, so the store is the same. Ray
retries what a lost node or a killed worker had in hand. Nothing is computed in the driver, which
may have other devices than the actors; the store lies on a file system that all nodes share.
"""

import functools
import os
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cogview_jax.data.skipped import SkipCounts, Skipped
from cogview_jax.data.token_writer import advance
from cogview_jax.runtime.errors import SystemFault
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.processes import leave_when_asked
from cogview_jax.runtime.progress import Progress
from cogview_jax.tasks.begun_store import BegunStore, begin, kept, report
from cogview_jax.tasks.experiment import TransformerExperiment

#: How often an actor may die of a shard before the command gives up.
RETRIES = 10


@dataclass(frozen=True)
class Remaining:
    """What is left of a store to be done.

    Attributes:
        finished: whether it has its manifest.
        records: of the source.
        missing: the shards that are not whole, and how many records each has.
        counts: what was met in the others.
    """

    finished: bool
    records: int
    missing: dict[int, int]
    counts: SkipCounts


class ShardActor:
    """Writes shards in a process of the cluster. One that Ray restarts opens the store again."""

    def __init__(self, experiment: TransformerExperiment, path: Path, folder: str):
        """Nothing is opened yet, so that what is wrong is an error of a task and no dead actor.

        Args:
            experiment: whose store is filled.
            path: the store.
            folder: the working folder of the driver, in which relative paths begin.
        """
        self._experiment, self._path, self._folder = experiment, path, folder

    @functools.cached_property
    def _store(self) -> BegunStore:
        os.chdir(self._folder)
        store = begin(self._experiment, self._path)
        remove_leftovers(self._path)
        return store

    def remaining(self) -> Remaining:
        """Begins the store where nobody has, and looks what is left to be done."""
        shards, counts = self._store.shards, self._store.writer.counts
        missing = {shard: len(shards.span(shard)) for shard in shards.shards}
        for shard, note in () if shards.finished else shards.written(shards.shards):
            counts.add(missing.pop(shard), note.skipped)
        return Remaining(shards.finished, shards.records, missing, counts)

    def write(self, shard: int, counts: SkipCounts) -> list[Skipped]:
        """Writes a shard, unless it is whole: an actor that died may just have written it.

        Args:
            shard: its number.
            counts: what was met in all others so far.

        Returns:
            What was skipped in it.
        """
        store = self._store
        if store.shards.note(shard) is None:
            store.writer.counts = counts
            store.writer.write(shard)
        note = store.shards.note(shard)
        if note is None:
            raise SystemFault(f"{self._path}: shard {shard} is not there after it was written")
        return note.skipped

    def finish(self) -> str:
        """Writes the manifest; returns how many captions training will cut, as `cut_captions`."""
        store = self._store
        store.shards.finish(store.meta, store.writer.max_skipped, store.writer.views)
        return store.cut_captions()


def prepare(experiment: TransformerExperiment, path: Path, shown: str) -> None:
    """As `preparation.prepare`, on the Ray cluster that is found.

    That is the cluster of RAY_ADDRESS, or the one that this machine belongs to; without one, Ray
    starts one of this machine alone.

    Raises:
        InputError: as `preparation.prepare`.
        SystemFault: as there, or the cluster failed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(ignore_reinit_error=True)
    leave_when_asked()  # Ray has put a handler of its own in its place
    try:
        _prepare(experiment, path, shown)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        why = str(error).strip().splitlines()[0]
        raise SystemFault(f"Ray: {why}; {kept(shown)}") from error
    finally:
        ray.shutdown()


def _prepare(experiment: TransformerExperiment, path: Path, shown: str) -> None:
    make, count = _actors(experiment, path)
    first = make()
    left: Remaining = ray.get(first.remaining.remote())
    cut = ""
    if not left.finished:
        done = left.records - sum(left.missing.values())
        actors = [first, *(make() for _ in range(min(count, len(left.missing)) - 1))]
        del first  # the list has the only handle
        with Progress(left.records, "tokens", unit="record", start=done) as progress:
            for shard, skipped in _written(actors, left):
                left.counts.add(left.missing[shard], skipped)
                advance(progress, left.missing[shard], left.counts)
        cut = ray.get(actors[0].finish.remote())
    report(shown, worked=not left.finished, cut=cut)


def _written(actors: list[Any], left: Remaining) -> Iterator[tuple[int, list[Skipped]]]:
    """Shards, as they are written; of the actors one is left in the end.

    An actor that finds no work ends, with its last handle. Ray needs its place for an actor whose
    node was lost, and which would otherwise wait for a place for ever, with a shard in hand.
    """
    todo = deque(left.missing)
    running: dict[Any, tuple[Any, int]] = {}
    while todo or running:
        while todo and actors:
            actor, shard = actors.pop(), todo.popleft()
            running[actor.write.remote(shard, left.counts)] = actor, shard
            del actor
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor, shard = running.pop(done)
        actors[:] = [actor] if todo or not running else []
        del actor
        yield shard, ray.get(done)


def _actors(experiment: TransformerExperiment, path: Path) -> tuple[Any, int]:
    """What makes an actor, and how many the cluster has room for: one a GPU, or else one a node.

    XLA takes all cores of a node, whatever Ray says of them.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    nodes = sum(node["Alive"] for node in ray.nodes())
    options = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    actor = ray.remote(ShardActor).options(
        max_restarts=-1, max_task_retries=RETRIES, scheduling_strategy="SPREAD", **options
    )
    where = f"{gpus} GPUs" if gpus else f"{nodes} nodes"
    print(f"Ray: an actor for each of {where}", file=sys.stderr, flush=True)
    return lambda: actor.remote(experiment, path, os.getcwd()), gpus or nodes
