"""The checkpoints of a run: written while training goes on, read back onto any mesh."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cogview_jax.checkpoints.async_save import AsyncSave
from cogview_jax.checkpoints.retention import Retention
from cogview_jax.checkpoints.step_directory import StepDirectory
from cogview_jax.checkpoints.stored_step import (
    ITEMS,
    check_sizes,
    one_line,
    read_meta,
    read_tree,
    trees,
    write_meta,
)
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import is_fault, system_error
from cogview_jax.runtime.folder_share import FolderShare
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.processes import log
from cogview_jax.training.state import TrainState


class Checkpointer:
    """DIRECTORY/STEP/, each as `stored_step` describes it; every process of the run has one.

    STEP is the state's position, the place in the data. A save is asynchronous and atomic: a
    checkpoint has its final name only when it is whole, hashed and on disk. One that cannot be
    written is reported, and training goes on. Restoring takes the newest whose files are all as
    they were written; those that are not are named and moved aside.

    A checkpoint of an earlier version has no hashes, and is believed to be whole: to pass it over
    for an older one that can be verified would throw work away on no evidence. One whose manifest
    was lost is not believed, and is told apart by its format.
    """

    def __init__(
        self,
        directory: Path,
        retention: Retention = Retention(),
        *,
        damaged: Path | None = None,
        share: FolderShare | None = None,
        timeout: int = 600,
    ):
        """Opens `directory`, made with its first checkpoint.

        Args:
            directory: where they lie.
            retention: which checkpoints stay.
            damaged: where damaged ones are moved; "damaged" beside `directory` by default.
            share: which processes see these folders; all see the same ones by default. Where hosts
                have their own, each writes its part of a checkpoint, and has to have all of one
                that is restored.
            timeout: seconds that a checkpoint may take to be written, and processes wait for each
                other.
        """
        directory = directory.absolute()
        self._share = share or FolderShare.of_all()
        damaged = damaged or directory.parent / "damaged"
        self._directory = StepDirectory(directory, damaged, self._share)
        self._retention, self._timeout = retention, timeout
        self._sync = KVStoreSync(timeout)
        self._saving: AsyncSave | None = None
        self._saved = True
        #: What was noted with the checkpoint that was restored.
        self.notes: dict[str, Any] = {}
        self._directory.remove_leftovers()

    def save(
        self,
        step: int,
        state: TrainState,
        metrics: Mapping[str, float] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts writing `state`, unless this step is there already.

        A full disk, or anything else that keeps it from being written, is one line on standard
        error: at once, or while training goes on. The other checkpoints stay as they are.

        Args:
            step: the state's position.
            state: may be donated when this returns.
            metrics: what was measured at this step, for `Retention`.
            notes: JSON values that `notes` has when this checkpoint is restored. They and the
                metrics may change when this returns.

        Raises:
            InputError: the metric that decides which checkpoints stay is none of `metrics`.
        """
        self.wait()
        if metrics is not None:
            self._retention.check(metrics)
        number = self._sync.next_number()
        if self._sync.broadcast(f"{number}/there", lambda: step in self._directory.steps()):
            self._saved = True
            return
        assert step == int(state.position), (step, int(state.position))
        self._saved = False
        self._saving = AsyncSave(
            self._directory.folder(step),
            self._sync,
            number,
            share=self._share,
            timeout=self._timeout,
            done=lambda reason: self._done(step, number, reason),
        )
        updates = int(state.step)
        # They are written in the background, when the caller may have changed them.
        metrics, notes = copy.deepcopy((metrics or {}, notes))
        reason = self._saving.begin(
            trees(state), lambda path: write_meta(path, step, updates, metrics, notes)
        )
        if reason:
            self._done(step, number, reason)

    def wait(self) -> bool:
        """Waits until everything is written; whether the last checkpoint asked for is there."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.wait()
        return self._saved

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of a step, with metadata that can be read.

        Every process gets the same answer.
        """
        self.wait()
        topic = f"{self._sync.next_number()}/has"
        return self._sync.broadcast(topic, lambda: step in self._directory.metrics())

    def ranked_steps(self) -> list[int]:
        """The steps of the checkpoints with the metric of the `Retention`, the best first.

        Every process gets the same answer.
        """
        self.wait()
        topic = f"{self._sync.next_number()}/ranked"
        metrics = self._directory.metrics
        return self._sync.broadcast(topic, lambda: self._retention.ranked(metrics()))

    def restore(
        self, shapes: TrainState, choices: Sequence[int] | None = None
    ) -> TrainState | None:
        """The newest state that is whole, shaped, typed and split as `shapes`; None if none is.

        Args:
            shapes: of the state.
            choices: the steps that will do, the preferred one first: the first whole one is taken,
                and there is a state then. By default all, the newest first.

        Raises:
            InputError: the checkpoint is of another model or cannot be read; all that will do are
                damaged, or one of `choices` that is reached is missing.
            SystemFault: the disk fails while it is read.
        """
        self.wait()
        step, damage = self._directory.newest_whole(self._sync, choices)
        if step is None:
            return None
        folder = self._directory.folder(step)
        with self._reading(folder):
            check_sizes(folder, shapes.params)
        self._directory.move_aside(damage, step, self._sync)
        with self._reading(folder):
            items = trees(shapes)
            found = {name: read_tree(folder, name, tree) for name, tree in items.items()}
            meta = read_meta(folder)
        self.notes = meta.get("notes", {})
        # Checkpoints of before there was a loss scale say nothing of updates: each step was one.
        updates = jax.numpy.int32(meta.get("updates", step))
        parts = {field: found.get(name, getattr(shapes, field)) for name, field in ITEMS.items()}
        updates = jax.device_put(updates, shapes.step.sharding)
        return dataclasses.replace(shapes, step=updates, **parts)

    def close(self) -> None:
        """Waits until everything is written."""
        self.wait()

    def __enter__(self) -> "Checkpointer":
        """The block closes it."""
        return self

    def __exit__(self, *exception) -> None:
        """Closes it, also after an error."""
        self.close()

    def _done(self, step: int, number: int, reason: str) -> None:
        """Takes note of how writing a checkpoint ended, and lets those go that need not stay.

        number: of the save, for topics.
        """
        self._saved = not reason
        if self._saved:
            self._directory.trust(step)
            self._directory.thin_out(self._retention, self._sync, f"{number}/gone")
            return
        steps = self._directory.steps()
        kept = f"checkpoint {steps[0]} is kept" if steps else "there is none yet"
        folder = self._directory.folder(step)
        log(f"checkpoint {folder} was not saved: {reason}; training goes on, {kept}")

    @contextlib.contextmanager
    def _reading(self, folder: Path) -> Iterator[None]:
        """What keeps one process from reading stops all, in one line."""
        failed = None
        try:
            yield
        except (ValueError, OSError, KeyError, SystemFault) as error:
            failed = error
        system = failed and system_error(failed)
        fault = isinstance(failed, SystemFault) or (system is not None and is_fault(system))
        topic = f"{self._sync.next_number()}/read"
        said = self._sync.all_gather(topic, [failed and one_line(system or failed), fault])
        if isinstance(failed, (InputError, SystemFault)):
            raise failed
        for reason, fault in said:
            if reason:
                kind = SystemFault if fault else InputError
                raise kind(f"checkpoint {folder} cannot be restored: {reason}") from failed
