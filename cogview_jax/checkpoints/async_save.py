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

from cogview_jax.checkpoints.manifest import write_manifest
from cogview_jax.checkpoints.orbax_noise import silence
from cogview_jax.checkpoints.stored_step import one_line
from cogview_jax.runtime.faults import system_error
from cogview_jax.runtime.files import replace_tree
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.leftovers import remove_leftovers, temporary_path

#: Folders of this process's failed saves. Their background writes may go on after the removal.
_given_up: set[Path] = set()


class AsyncSave:
    """Writes a checkpoint to a temporary name, adds its manifest, and renames it.

    Every process writes its own shards of the arrays and reports whether it succeeded. Process 0
    finishes the folder only if all did. If one process cannot write, the checkpoint fails on all
    processes at once and no process blocks.
    """

    def __init__(
        self,
        folder: Path,
        sync: KVStoreSync,
        attempt: int,
        *,
        timeout: int,
        done: Callable[[str], None],
    ):
        """Nothing is written before `begin`.

        Args:
            folder: the final name; an existing folder is replaced.
            sync: communicates among the processes.
            attempt: a number that no other save with this `sync` has.
            timeout: seconds that writing may take.
            done: called on every process, in a background thread, with the reason of a failure or
                "".
        """
        silence()
        self._folder, self._sync, self._attempt = folder, sync, attempt
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
        name, reason = self._sync.broadcast(f"{self._attempt}/begin", lambda: self._make(items))
        if reason:
            return reason
        self._temporary = self._folder.with_name(name)
        self._deadline = time.monotonic() + self._timeout
        handlers = {name: ocp.StandardCheckpointHandler() for name in items}
        futures: list[Any] = []
        reason = ""
        try:
            for name, tree in items.items():
                started = handlers[name].async_save(
                    epath.Path(self._temporary / name), args=ocp.args.StandardSave(tree)
                )
                futures += asyncio.run(started) or []
        except Exception as error:
            reason = _failure(error)
            if reason is None:
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

    def _make(self, items: Mapping[str, Any]) -> tuple[str, str]:
        """Makes the folders if the disk has room: the temporary name and "", or "" and the reason.

        The name holds the id of process 0, so that a later run can tell whether it is alive.
        """
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(items)))
        self._temporary = temporary_path(self._folder)
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                remove_leftovers(self._folder.parent)
            for folder in _given_up:
                shutil.rmtree(folder, ignore_errors=True)
            free = shutil.disk_usage(self._folder.parent).free
            if free < size:
                return "", f"it needs {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
            for name in items:
                (self._temporary / name).mkdir(parents=True)
        except OSError as error:
            self._remove()
            return "", one_line(error)
        return self._temporary.name, ""

    def _finish(
        self, futures: list, reason: str, handlers: Mapping[str, Any], other: Callable[[Path], None]
    ) -> None:
        """In a background thread: waits for the arrays, commits if all processes have written."""
        try:
            for future in futures:
                reason = self._attempt_to(functools.partial(self._await, future)) or reason
            reason = self._agree("written", reason)
            if not reason:
                if self._first:
                    reason = self._attempt_to(lambda: self._commit(handlers, other))
                reason = self._agree("committed", reason)
            if reason:
                self._remove()
            if self._defect is None:
                self._done(reason)
        except BaseException as error:
            self._defect = self._defect or error

    def _await(self, future: Any) -> None:
        future.result(timeout=max(1, self._deadline - time.monotonic()))

    def _commit(self, handlers: Mapping[str, Any], other: Callable[[Path], None]) -> None:
        for name, handler in handlers.items():
            handler.finalize(epath.Path(self._temporary / name))
        other(self._temporary)
        write_manifest(self._temporary)
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
        if self._first:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _failure(error: BaseException) -> str | None:
    """The reason in one line if the disk failed; None for any other error."""
    if isinstance(error, OSError):  # TimeoutError is one
        return one_line(error)
    system = system_error(error)
    return None if system is None else system.strerror
