"""A file that is read forwards in short pieces, with few calls of the system or the network."""

import io
import os
from typing import TypeVar

from cogview_jax.data.remote.addresses import is_address
from cogview_jax.data.remote.files import file_status, read_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import open_regular, read_at

#: How many bytes of a local file are read at a time.
_WINDOW = 8 << 10
#: Of a remote one as many as arrive in about the time that an answer takes. Where more than
#: that is passed over, fewer are read, as the next piece will be far away again.
_REMOTE, _FAR = 4 << 20, 64 << 10

Opened = TypeVar("Opened", bound="WindowedFile")


class WindowedFile:
    """The bytes of a file, of which a few KB are in memory, or a few MB of a remote one."""

    def __init__(self, path: str):
        """Opens the file at a path or an address.

        Raises:
            InputError: it is no regular file, or cannot be opened.
            SystemFault: the machine cannot read it.
        """
        self.path = path
        self._bytes = _RemoteBytes(path) if is_address(path) else _LocalBytes(path)
        self.size: int = self._bytes.size
        self._window, self._start = b"", 0

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *exception) -> None:
        self._bytes.close()

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._window):
            gap = abs(begin - len(self._window))
            self._window = self._bytes.read(offset, max(size, self._bytes.window(gap)))
            self._start, begin = offset, 0
        return self._window[begin : begin + size]


class _LocalBytes:
    """A file that is there."""

    def __init__(self, path: str):
        self._path = path
        try:
            self._file = retried(lambda: open_regular(path), path)
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None
        self.size = os.fstat(self._file.fileno()).st_size
        self.close = self._file.close

    def read(self, offset: int, size: int) -> bytes:
        return retried(lambda: read_at(self._file.fileno(), size, offset), self._path)

    def window(self, gap: int) -> int:
        return _WINDOW


class _RemoteBytes:
    """A file on another machine."""

    def __init__(self, address: str):
        self._address, self._status = address, file_status(address)
        self.size = self._status.size

    def read(self, offset: int, size: int) -> bytes:
        return read_range(self._address, offset, size, self._status)

    def window(self, gap: int) -> int:
        """Bytes to read at a place so far from the last ones."""
        return _FAR if gap > _REMOTE else _REMOTE

    def close(self) -> None:
        pass


class FileStream(io.RawIOBase):
    """A windowed file as Python's own files are, for libraries that read such."""

    def __init__(self, file: WindowedFile):
        """Begins at its first byte; `file` is closed with this."""
        self._file, self._place = file, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place; see `io.IOBase.seek`."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._file.size}[whence]
        self._place = max(0, begin + offset)
        return self._place

    def tell(self) -> int:
        """The place."""
        return self._place

    def readinto(self, buffer) -> int:
        """Fills a buffer; see `io.RawIOBase.readinto`."""
        data = self._file.read(self._place, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
