"""The folder that holds a run's checkpoints: which there are, which can be used, which must go."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from cogview_jax.checkpoints.retention import Retention
from cogview_jax.checkpoints.stored_step import examine, one_line, read_meta
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.folder_share import FolderShare
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.leftovers import remove, remove_leftovers, temporary_path
from cogview_jax.runtime.processes import log


class DamagedCheckpoints(InputError):
    """None of the checkpoints in a folder that will do is as it was written."""


class StepDirectory:
    """The folders PATH/STEP/, one for each checkpoint. Other names are ignored."""

    def __init__(self, path: Path, damaged: Path, share: FolderShare):
        """Looks for nothing yet.

        Args:
            path: the folder.
            damaged: the folder that damaged checkpoints are moved to.
            share: which processes see these folders.
        """
        self.path, self._damaged, self._share = path, damaged, share
        #: Damaged checkpoints that could not be moved.
        self._distrusted: set[int] = set()
        #: Checkpoints whose metadata could not be read, which was said.
        self._unreadable: set[int] = set()

    def folder(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.path / str(step)

    def steps(self) -> list[int]:
        """The steps of all checkpoints that are not known to be damaged, the newest first."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        steps = {int(name) for name in names if name.isdecimal()}
        return sorted(steps - self._distrusted, reverse=True)

    def trust(self, step: int) -> None:
        """Records that a checkpoint was written again and is whole."""
        self._distrusted.discard(step)

    def remove_leftovers(self) -> None:
        """Deletes half-written files of killed programs.

        Called by every process, first of all. The run must hold the lock of its workdir.
        """
        if not self._share.leads:
            return
        remove_leftovers(self.path, owned=True)
        for half_written in self.path.glob("*.orbax-checkpoint-tmp*"):  # of earlier versions
            shutil.rmtree(half_written)

    def metrics(self) -> dict[int, dict[str, float]]:
        """What was measured at the step of each checkpoint whose metadata can be read.

        Of another one a line says, once, that it is passed over.
        """
        metrics = {}
        for step in self.steps():
            try:
                metrics[step] = read_meta(self.folder(step)).get("metrics", {})
            except (OSError, ValueError) as error:
                if step not in self._unreadable:
                    self._unreadable.add(step)
                    log(
                        f"checkpoint {self.folder(step)} is damaged ({one_line(error)}): it is"
                        " kept, and is not among the best"
                    )
        return metrics

    def thin_out(self, retention: Retention, sync: KVStoreSync, topic: str) -> None:
        """Deletes the checkpoints that `retention` does not keep.

        Call it only after a new checkpoint is whole, since the old ones are needed until then.

        Args:
            retention: says which are kept.
            sync: communicates among the processes, all of which must call this.
            topic: of `sync`.
        """
        gone = sync.broadcast(topic, lambda: self._superfluous(retention))
        if not self._share.leads:
            return
        try:
            for step in gone:
                # Under another name first: what a kill leaves of it is no checkpoint.
                aside = temporary_path(self.folder(step))
                with contextlib.suppress(FileNotFoundError):  # of this host's own folder
                    os.replace(self.folder(step), aside)
                remove(aside)
        except OSError as error:
            self._say_kept(error)

    def _superfluous(self, retention: Retention) -> list[int]:
        """The checkpoints that `retention` does not keep; none where the disk does not tell."""
        try:
            metrics = self.metrics()
        except SystemFault as error:  # The others wait for an answer.
            self._say_kept(error)
            return []
        return sorted(metrics.keys() - retention.steps_to_keep(metrics))

    def _say_kept(self, error: Exception) -> None:
        log(f"{self.path}: an old checkpoint could not be deleted: {one_line(error)}")

    def newest_whole(
        self, sync: KVStoreSync, choices: Sequence[int] | None = None
    ) -> tuple[int | None, dict[int, str]]:
        """The newest checkpoint that is whole, and the damage of newer ones by step.

        Every process verifies a part of the files, and all get the same result. The step is None
        if there is no checkpoint.

        Args:
            sync: communicates among the processes, all of which must call this.
            choices: the steps that will do, the preferred one first; by default all, the newest
                first.

        Raises:
            DamagedCheckpoints: there are checkpoints, and all that will do are damaged.
            InputError: one of `choices` that is reached is missing.
            SystemFault: the disk fails, so that a checkpoint can be neither trusted nor rejected.
        """
        number, damage = sync.next_number(), {}
        steps = sync.broadcast(f"{number}/steps", self.steps)
        for step in steps if choices is None else choices:
            if step not in steps:
                there = ", ".join(map(str, sorted(steps))) or "none"
                raise InputError(
                    f"there is no checkpoint {self.folder(step)}; steps there: {there}"
                )
            fault, known = "", True
            wrong: list[str] = []
            try:
                share = self._share
                wrong, known = examine(self.folder(step), share.place, len(share.peers))
            except SystemFault as error:
                fault = str(error)
            said = sync.all_gather(f"{number}/{step}", [wrong[:1], len(wrong), known, fault])
            if faults := [fault for *_, fault in said if fault]:
                raise SystemFault(f"{faults[0]}; if that stays, move {self.folder(step)} away")
            if first := [line for lines, *_ in said for line in lines]:
                more = sum(count for _, count, *_ in said) - 1
                damage[step] = first[0] + f", and {more} more" * (more > 0)
                continue
            if not all(known for _, _, known, _ in said):
                log(
                    f"checkpoint {self.folder(step)} is of an earlier version, without"
                    " manifest.json: whether it is whole could not be verified"
                )
            return step, damage
        if choices is not None and len(choices) == 1:
            raise DamagedCheckpoints(
                f"checkpoint {self.folder(*choices)} is damaged ({damage[choices[0]]})"
            )
        if damage:
            listed = "; ".join(f"{step}: {found}" for step, found in damage.items())
            raise DamagedCheckpoints(
                f"every checkpoint in {self.path} is damaged ({listed}): restore one from a copy,"
                " or remove them to start anew"
            )
        return None, {}

    def move_aside(self, damage: Mapping[int, str], chosen: int, sync: KVStoreSync) -> None:
        """Reports damaged checkpoints and moves them away, so that their steps can be saved again.

        Args:
            damage: step -> what is wrong.
            chosen: the step of the checkpoint that is used instead.
            sync: communicates among the processes, all of which must call this.
        """
        if damage:
            topic = f"{sync.next_number()}/aside"
            left = self._move(damage, chosen) if self._share.leads else []
            self._distrusted.update(*sync.all_gather(topic, left))

    def _move(self, damage: Mapping[int, str], chosen: int) -> list[int]:
        """Those that could not be moved."""
        left = []
        for step, found in damage.items():
            place = self._damaged / str(step)
            for number in itertools.count(2):
                if not place.exists():
                    break
                place = self._damaged / f"{step}-{number}"
            try:
                self._damaged.mkdir(parents=True, exist_ok=True)
                shutil.move(self.folder(step), place)
                fate = f"moved to {place}"
            except OSError as error:
                left.append(step)
                fate = f"not moved to {place} ({one_line(error)})"
            log(
                f"checkpoint {self.folder(step)} is damaged ({found}): {fate}; checkpoint {chosen}"
                " is used instead"
            )
        return left
