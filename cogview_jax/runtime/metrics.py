"""What a run measures, step by step: TensorBoard events, and JSON lines for other programs."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path, read_regular
from cogview_jax.runtime.set_aside import set_aside

#: Of a log, the most bytes that are read.
LIMIT = 1 << 30


class MetricsWriter:
    """Writes TensorBoard events and `metrics.jsonl` into a folder; only process 0 writes.

    `metrics.jsonl` holds one object a log step, `{"step": ..., name: value, ...}`, appended and
    flushed at once; a value that is not finite is null. A run that resumes writes some steps again:
    with the first step it writes, the lines and events of that step and later ones are dropped, so
    the file of a resumed run is the file of the unbroken one (but for timings).

    What cannot be written, on a disk that is full, raises OSError, stays in memory, and is written
    with what comes next once there is room. Events are written as they come rather than through
    tensorboardX's SummaryWriter: its thread would die of such an error, and the run with it.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        self._writes = jax.process_index() == 0
        self._lines = self._events = None

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records numbers (Python, numpy or jax scalars) measured at `step`."""
        if not self._writes:
            return
        self._open(step)
        numbers = {name: np.asarray(value).item() for name, value in values.items()}
        finite = {name: n if math.isfinite(n) else None for name, n in numbers.items()}
        self._lines.write(json.dumps({"step": int(step)} | finite) + "\n")
        for name, number in finite.items():
            if number is not None:
                self._add(step, scalar(name, number))
        self._lines.flush()
        self._events.flush()

    def images(self, step: int, name: str, picture: np.ndarray) -> None:
        """Records one picture, uint8 [h, w, 3], for TensorBoard."""
        if self._writes:
            self._open(step)
            self._add(step, image(name, picture, dataformats="HWC"))
            self._events.flush()

    def close(self) -> None:
        """Writes out what is pending; OSError where that cannot be."""
        if self._lines is not None:
            self._events.close()
            self._lines.close()

    def __enter__(self) -> "MetricsWriter":
        """The block closes it."""
        return self

    def __exit__(self, *exception) -> None:
        """Closes it, also after an error. Lines for which there is no room are lost."""
        with contextlib.suppress(OSError):
            self.close()

    def _add(self, step: int, summary: Any) -> None:
        event = Event(wall_time=time.time(), step=int(step), summary=summary)
        self._events.write_event(event)

    def _open(self, step: int) -> None:
        if self._lines is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            path = self.directory / "metrics.jsonl"
            _drop_from(path, step)
            lines = path.open("a", encoding="utf-8")
            self._events = EventsWriter(str(self.directory / "events"))
            # Tells TensorBoard to forget the same steps.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(
                Event(wall_time=time.time(), step=int(step), session_log=start)
            )
            self._lines = lines


def _drop_from(path: Path, step: int) -> None:
    """Removes the lines of `step` and later ones, and a last line that was not finished.

    Where other lines are damaged, the file as it was is set aside, and the good ones stay.
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
    """The step that a line is of; None where the line is damaged."""
    try:
        found = json.loads(line)
        step = found.get("step") if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return None
    return step if type(step) is int else None
