"""One checkpoint on its way to disk, while training goes on."""

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

#: Of this process. A write that has failed may go on for a while after its folder was removed.
_given_up: set[Path] = set()


class AsyncSave:
    """Writes a checkpoint beside its final name, lists it in its manifest, and gives it the name.

    Every process writes its own parts of the arrays. Then all say whether they could; only if all
    could does process 0 finish the folder. So a disk that is full for one is a failed checkpoint on
    all, found at once, and nobody waits for somebody who has given up.
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
        """Nothing is written yet.

        Args:
            folder: the final name; a folder that is there is replaced.
            sync: among the processes.
            attempt: tells this from the other savings of the sync.
            timeout: seconds that the writing may take.
            done: called on every process, in the background, with why it failed or "".
        """
        silence()
        self._folder, self._sync, self._attempt = folder, sync, attempt
        self._temporary: Path
        self._timeout, self._done = timeout, done
        self._thread: threading.Thread | None = None
        self._defect: BaseException | None = None
        self._first = jax.process_index() == 0

    def begin(self, items: Mapping[str, Any], other: Callable[[Path], None]) -> str:
        """Copies the arrays and starts writing; they may be overwritten when this returns.

        Args:
            items: name -> tree of arrays.
            other: writes what is no array into the folder it is given, on process 0 only.

        Returns:
            Why nothing could be started, the same on all processes, or "".
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
        """Until it is written or has failed; raises a defect of ours that was met in between."""
        if self._thread is not None:
            self._thread.join()
        if self._defect is not None:
            raise self._defect

    def _make(self, items: Mapping[str, Any]) -> tuple[str, str]:
        """Makes the folders if the disk has room for what comes: their parent's name, or why not.

        The name is process 0's, so that a later run can tell whether who writes there is alive.
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
        """In the background: waits for the arrays, and commits if they are there on all."""
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
        """Why `work` failed, or ""; a defect is kept for `wait`."""
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
        """The reasons of all processes, as one."""
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
    """Why a disk did not take what was written, in a line; None if it is not the disk's fault."""
    if isinstance(error, OSError):  # TimeoutError is one
        return one_line(error)
    system = system_error(error)
    return None if system is None else system.strerror
