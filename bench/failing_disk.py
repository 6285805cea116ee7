"""A disk that fails when it is told to; see failing_disk.c."""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
FULL, BROKEN = errno.ENOSPC, errno.EIO


class FailingDisk:
    """A disk that fails for programs that are started with its `environ`, and for no others."""

    def __init__(self, folder: Path):
        """Compiles the library into `folder`. This needs a C compiler and Linux."""
        folder.mkdir(parents=True, exist_ok=True)
        library, self._control = folder / "failing_disk.so", folder / "failing_disk.txt"
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        self.environ = {"LD_PRELOAD": str(library), "FAILING_DISK": str(self._control)}

    @staticmethod
    def available() -> bool:
        """Returns whether there is a C compiler."""
        return shutil.which("cc") is not None

    @contextlib.contextmanager
    def fails(self, code: int, text: str) -> Iterator[None]:
        """Lets calls on paths that contain `text` fail with error number `code` in the block.

        With FULL only writing fails; with every other error reading fails too.
        """
        written = self._control.with_suffix(".new")
        written.write_text(f"{code} {text}\n", encoding="utf-8")
        os.replace(written, self._control)
        try:
            yield
        finally:
            self._control.unlink()
