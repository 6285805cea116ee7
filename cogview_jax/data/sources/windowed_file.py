"""A file that is read forwards in short pieces, with few calls of the system."""

import os
from typing import TypeVar

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import open_regular, read_at

#: How many bytes are read at a time.
_WINDOW = 8 << 10

Opened = TypeVar("Opened", bound="WindowedFile")


class WindowedFile:
    """The bytes of a file, of which a few KB are in memory."""

    def __init__(self, path: str):
        """Opens the file.

        Raises:
            InputError: it is no regular file, or cannot be opened.
            SystemFault: the machine cannot read it.
        """
        self.path = path
        try:
            self._file = retried(lambda: open_regular(path), path)
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None
        self.status = os.fstat(self._file.fileno())
        self._window, self._start = b"", 0

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._window):
            wanted = max(size, _WINDOW)
            descriptor = self._file.fileno()
            self._window = retried(lambda: read_at(descriptor, wanted, offset), self.path)
            self._start, begin = offset, 0
        return self._window[begin : begin + size]
