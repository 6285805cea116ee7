"""Asynchronous, atomic writing of one checkpoint by all processes of a run."""

import asyncio
import contextlib
import functools
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from cogview_jax.checkpoints.manifest import hashed, write_manifest
from cogview_jax.checkpoints.orbax_noise import silence
from cogview_jax.checkpoints.stored_step import one_line
from cogview_jax.runtime.faults import system_error
from cogview_jax.runtime.files import replace_tree
from cogview_jax.runtime.folder_share import FolderShare
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.leftovers import remove_leftovers, temporary_path

#: Folders of this process's failed saves. Their background writes may go on after the removal.
_given_up: set[Path] = set()


class AsyncSave:
    """Writes a checkpoint to a temporary name, adds its manifest, and renames it.

    Every process writes its own shards of the arrays and reports whether it succeeded. Process 0
    finishes the folder only if all did. If one process cannot write, the checkpoint fails on all
    processes at once and no process blocks.

    Where hosts have folders of their own, each holds the files that its processes wrote, and the
    manifest of all of them. Arrays are then files of their own: Orbax gathers them into one
    database otherwise, for which one process has to read what the others wrote.
    """

    def __init__(
        self,
        folder: Path,
        sync: KVStoreSync,
        attempt: int,
        *,
        share: FolderShare,
        timeout: int,
        done: Callable[[str], None],
    ):
        """Nothing is written before `begin`.

        Args:
            folder: the final name; an existing folder is replaced.
            sync: communicates among the processes.
            attempt: a number that no other save with this `sync` has.
            share: which processes see the folder.
            timeout: seconds that writing may take.
            done: called on every process, in a background thread, with the reason of a failure or
                "".
        """
        silence()
        self._folder, self._sync, self._attempt, self._share = folder, sync, attempt, share
        self._temporary: Path
        self._timeout, self._done = timeout, done
        self._thread: threading.Thread | None = None
        self._defect: BaseException | None = None
        self._first = jax.process_index() == 0

    def begin(self, items: Mapping[str, Any], other: Callable[[Path], None]) -> str:
        """Copies the arrays and starts to write. The arrays may be overwritten when this returns.

        Args:
            items: name -> tree of arrays.
            other: writes everything but arrays into the given folder; called on process 0 only.

        Returns:
            The reason why writing could not start, the same on all processes, or "".
        """
        # The name holds the id of process 0, so that a later run can tell whether it is alive.
        name = self._sync.broadcast(
            f"{self._attempt}/name", lambda: temporary_path(self._folder).name
        )
        self._temporary = self._folder.with_name(name)
        reason = self._agree("begin", self._make(items) if self._share.leads else "")
        if reason:
            self._remove()
            return reason
        self._deadline = time.monotonic() + self._timeout
        handlers = {name: _handler(one_folder=self._share.whole) for name in items}
        futures: list[Any] = []
        try:
            for name, tree in items.items():
                started = handlers[name].async_save(
                    epath.Path(self._temporary / name), args=ocp.args.PyTreeSave(tree)
                )
                futures += asyncio.run(started) or []
        except Exception as error:
            reason = _failure(error) or ""
            if not reason:
                self._remove()
                raise
        self._thread = threading.Thread(
            target=self._finish, args=(futures, reason, handlers, other), daemon=True
        )
        self._thread.start()
        return ""

    def wait(self) -> None:
        """Blocks until the save has ended, and raises what was a bug in the background thread."""
        if self._thread is not None:
            self._thread.join()
        if self._defect is not None:
            raise self._defect

    def _make(self, items: Mapping[str, Any]) -> str:
        """Makes the folders if the disk has room; returns the reason why not, or ""."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(items)))
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                remove_leftovers(self._folder.parent)
            for folder in _given_up:
                shutil.rmtree(folder, ignore_errors=True)
            free = shutil.disk_usage(self._folder.parent).free
            if free < size:
                return f"it needs {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
            for name in items:
                (self._temporary / name).mkdir(parents=True)
        except OSError as error:
            return one_line(error)
        return ""

    def _finish(
        self, futures: list, reason: str, handlers: Mapping[str, Any], other: Callable[[Path], None]
    ) -> None:
        """In a background thread: waits for the arrays, commits if all processes have written."""
        try:
            for future in futures:
                reason = self._attempt_to(functools.partial(self._await, future)) or reason
            reason = self._agree("written", reason)
            own: dict[str, Any] = {}
            stages: dict[str, tuple[bool, Callable[[], None]]] = {
                "complete": (self._first, lambda: self._complete(handlers, other)),
                "hashed": (self._share.leads, lambda: own.update(hashed(self._temporary))),
                "committed": (True, lambda: self._commit(own)),
            }
            for topic, (mine, work) in stages.items():
                if not reason:
                    reason = self._agree(topic, self._attempt_to(work) if mine else "")
            if reason:
                self._remove()
            if self._defect is None:
                self._done(reason)
        except BaseException as error:
            self._defect = self._defect or error

    def _await(self, future: Any) -> None:
        future.result(timeout=max(1, self._deadline - time.monotonic()))

    def _complete(self, handlers: Mapping[str, Any], other: Callable[[Path], None]) -> None:
        """On process 0: writes what is written once."""
        for name, handler in handlers.items():
            if self._share.whole:
                handler.finalize(epath.Path(self._temporary / name))
        other(self._temporary)

    def _commit(self, own: Mapping[str, Any]) -> None:
        """Lists the files of all folders in the manifest of each, and gives it its name.

        own: the files of this one, with their hashes.
        """
        parts = self._sync.all_gather(f"{self._attempt}/files", own)
        files = {name: entry for part in parts for name, entry in part.items()}
        assert sum(map(len, parts)) == len(files), "two hosts have written the same file"
        if self._share.leads:
            write_manifest(self._temporary, files)
            replace_tree(self._temporary, self._folder)

    def _attempt_to(self, work: Callable[[], None]) -> str:
        """Returns the reason why `work` failed, or "". A bug is kept, and raised by `wait`."""
        try:
            work()
        except Exception as error:
            reason = _failure(error)
            if reason is None:
                self._defect = self._defect or error
                reason = f"defect: {one_line(error)}"
            return reason
        return ""

    def _agree(self, topic: str, reason: str) -> str:
        """The reasons of all processes in one line; "" if there is none."""
        try:
            said = self._sync.all_gather(f"{self._attempt}/{topic}", reason)
        except TimeoutError as error:
            return one_line(error)
        several = len(said) > 1
        failed = [f"process {i}: {why}" if several else why for i, why in enumerate(said) if why]
        return failed[0] + f" (and {len(failed) - 1} more)" * (len(failed) > 1) if failed else ""

    def _remove(self) -> None:
        _given_up.add(self._temporary)
        if self._share.leads:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if not self._share.whole:  # some hosts may have given their part its name
            shutil.rmtree(self._folder, ignore_errors=True)


def _failure(error: BaseException) -> str | None:
    """The reason in one line if the disk failed; None for any other error."""
    if isinstance(error, OSError):  # TimeoutError is one
        return one_line(error)
    system = system_error(error)
    return None if system is None else system.strerror


def _handler(*, one_folder: bool) -> ocp.PyTreeCheckpointHandler:
    """What writes a tree of arrays, into one folder or the folders of several hosts."""
    if one_folder:
        return ocp.PyTreeCheckpointHandler()
    # The global registry's handler of arrays waits for process 0 to make a folder of metadata.
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    return ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
