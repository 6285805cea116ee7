"""A contender: a process that measures whenever a line comes in, so that several can take turns."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def started(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen]:
    """Starts a contender, which runs in `folder` and imports its packages; it is ended after."""
    environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: Any, line: str | None = None) -> dict[str, Any]:
    """Returns the next answer of a contender, a line of JSON, after sending it a line if given."""
    with contextlib.suppress(BrokenPipeError):  # An ended contender is reported below.
        if line is not None:
            process.stdin.write(line + "\n")
            process.stdin.flush()
    reply = process.stdout.readline()
    if not reply:
        raise SystemExit("a contender ended early; its error is above")
    return json.loads(reply)
