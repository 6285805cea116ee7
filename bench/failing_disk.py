"""A disk that fails when it is told to: see failing_disk.c."""

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
    """What programs meet that are started with its `environ`; others meet nothing."""

    def __init__(self, folder: Path):
        """Compiles the library into `folder`; the disk works. Needs a C compiler and Linux."""
        folder.mkdir(parents=True, exist_ok=True)
        library, self._control = folder / "failing_disk.so", folder / "failing_disk.txt"
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        self.environ = {"LD_PRELOAD": str(library), "FAILING_DISK": str(self._control)}

    @staticmethod
    def available() -> bool:
        """Whether there is a compiler."""
        return shutil.which("cc") is not None

    @contextlib.contextmanager
    def fails(self, code: int, text: str) -> Iterator[None]:
        """In the block calls on paths that contain `text` fail with the error number `code`.

        FULL is met by what writes, every other error by what reads too.
        """
        written = self._control.with_suffix(".new")
        written.write_text(f"{code} {text}\n", encoding="utf-8")
        os.replace(written, self._control)
        try:
            yield
        finally:
            self._control.unlink()
