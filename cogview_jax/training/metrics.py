"""The metrics of a run by step: TensorBoard events, and JSON lines for other programs."""

import contextlib
import io
import json
import math
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import numpy as np
from jaxtyping import UInt8
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import hparams, image, scalar, text

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path, read_regular
from cogview_jax.runtime.leftovers import set_aside

#: The largest log that is read, in bytes.
LIMIT = 1 << 30


class MetricsWriter:
    """Writes TensorBoard events and `metrics.jsonl` into a folder; only process 0 writes.

    `metrics.jsonl` holds one object a log step, `{"step": ..., name: value, ...}`, which is written
    immediately; a value that is not finite is null. A resumed run writes some steps again: at its
    first write, lines and events of that step and later ones are dropped, so that the file of a
    resumed run is the file of the unbroken run, except for timings.

    If the disk is full, a write raises OSError; its data stays in memory and is written with the
    next write that succeeds. Events are framed here for this reason: the writers of tensorboardX
    lose what does not fit their buffer and leave an unreadable file.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        texts: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        results: Sequence[str] = (),
    ) -> None:
        """Nothing is written before the first numbers or images are.

        Args:
            directory: is made if it is missing.
            texts: name -> Markdown that TensorBoard shows beside the first of them.
            settings: name -> value of each hyperparameter of the run, for TensorBoard's table of
                runs (HPARAMS). Values that are None are left out.
            results: names of the numbers that this table shows of the run.
        """
        self._texts, self._settings, self._results = texts or {}, settings or {}, results
        self.directory = Path(directory)
        self._writes = jax.process_index() == 0
        self._lines = _Appended(self.directory / "metrics.jsonl")
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._events = _Appended(self.directory / name)
        self._first: int | None = None
        self._dropped = False

    def scalars(self, step: SupportsIndex, values: Mapping[str, Any]) -> None:
        """Records numbers (Python, numpy or jax scalars) measured at `step`."""
        if not self._writes:
            return
        self._begin(int(step))
        numbers = {name: np.asarray(value).item() for name, value in values.items()}
        finite = {name: n if math.isfinite(n) else None for name, n in numbers.items()}
        self._lines.add(json.dumps({"step": int(step)} | finite).encode() + b"\n")
        for name, number in finite.items():
            if number is not None:
                self._add(step=int(step), summary=scalar(name, number))
        self._write()

    def images(self, step: int, name: str, array: UInt8[np.ndarray, "h w 3"]) -> None:
        """Records one image for TensorBoard."""
        if self._writes:
            self._begin(int(step))
            self._add(step=int(step), summary=image(name, array, dataformats="HWC"))
            self._write()

    def close(self) -> None:
        """Writes pending data; OSError if that fails."""
        try:
            if self._first is not None:
                self._write()
        finally:
            self._lines.close()
            self._events.close()

    def __enter__(self) -> "MetricsWriter":
        """The block closes it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes it, also after an error. Lines that cannot be written are lost."""
        with contextlib.suppress(OSError):
            self.close()

    def _begin(self, step: int) -> None:
        if self._first is None:
            self._first = step
            self._add(file_version="brain.Event:2")
            # Tells TensorBoard to forget the same steps.
            self._add(step=int(step), session_log=SessionLog(status=SessionLog.START))
            for name, markdown in self._texts.items():
                self._add(step=int(step), summary=text(name, markdown))
            if self._settings:
                values = {n: _plain(value) for n, value in self._settings.items()}
                experiment, began, _ = hparams(values, dict.fromkeys(self._results))
                self._add(step=int(step), summary=experiment)
                self._add(step=int(step), summary=began)

    def _add(self, **event: Any) -> None:
        """Adds an event in the framing of TFRecord files: size, payload, and checksums of both."""
        payload = Event(wall_time=time.time(), **event).SerializeToString()
        size = struct.pack("<Q", len(payload))
        for data in (size, payload):
            self._events.add(data + struct.pack("<I", masked_crc32c(data)))

    def _write(self) -> None:
        if not self._dropped and self._first is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            _drop_from(self._lines.path, self._first)
            self._dropped = True
        self._lines.write()
        self._events.write()


def _plain(value: Any) -> Any:
    """A value as the table of hyperparameters has it: lists and sections are texts."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class _Appended:
    """A file that is appended to; bytes that could not be written yet stay pending, in order."""

    def __init__(self, path: Path):
        """The file is made at the first write."""
        self.path = path
        self._pending = bytearray()
        self._file: io.FileIO | None = None

    def add(self, data: bytes) -> None:
        """Adds bytes to those that are pending."""
        self._pending += data

    def write(self) -> None:
        """Writes pending bytes; OSError if not all of them can be written."""
        if self._file is None:
            # Unbuffered: a buffer would lose bytes that it cannot write.
            self._file = self.path.open("ab", buffering=0)
        while self._pending:
            del self._pending[: self._file.write(self._pending)]

    def close(self) -> None:
        """Closes the file; pending bytes are lost."""
        if self._file is not None:
            self._file.close()


def _drop_from(path: Path, step: int) -> None:
    """Removes the lines of `step` and later ones, and an unfinished last line.

    If other lines are damaged, the old file is set aside, and the new one has the good lines.
    """
    if not os.path.lexists(path):
        return
    try:
        *whole, cut = read_regular(path, LIMIT).split(b"\n")
    except InputError as error:
        set_aside(path, str(error).removeprefix(f"{path}: "))
        return
    steps = [_step(line) for line in whole]
    kept = [
        line for line, found in zip(whole, steps, strict=True) if found is not None and found < step
    ]
    if damaged := steps.count(None):
        set_aside(path, f"{damaged} of its {len(whole)} lines are damaged")
    if cut or kept != whole:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in kept))


def _step(line: bytes) -> int | None:
    """The step of a line; None if the line is damaged."""
    try:
        found = json.loads(line)
        step = found.get("step") if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return None
    return step if type(step) is int else None
