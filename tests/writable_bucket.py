"""A bucket in memory that is written to, and fails as it is told to."""

import threading
from collections import deque
from pathlib import Path

from fsspec.implementations.memory import MemoryFile

from served_bundles import Bucket


class Answered(Exception):
    """What an S3 server answers, as botocore raises it."""

    def __init__(self, status):
        super().__init__(status)
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class Killed(BaseException):
    """The process is killed in the midst of a request."""


class WritableBucket(Bucket):
    """fsspec's memory in the place of a bucket's file system, for many threads.

    Attributes:
        wrote: the names of objects, as they were written; deleted ones begin with "-". Locks are
            not among them.
        faults: what happens to the next writes, one each: a status, or None for nothing.
        always: what happens to all requests: a status.
        dies: the length of `wrote` at which the process is killed.
    """

    def __init__(self, folder, address):
        self._lock = threading.Lock()
        self.wrote: list[str] = []
        self.faults: deque = deque()
        self.always: int | None = None
        self.dies: int | None = None
        super().__init__(folder, address)

    def names(self):
        """The names of all objects below the address."""
        start = self._path(f"{self.address}/")
        with self._lock:
            return sorted(n.removeprefix(start) for n in self.memory.store if n.startswith(start))

    def read(self, name):
        return self.memory.store[self._path(f"{self.address}/{name}")].getvalue()

    def info(self, address):
        self._ask()
        with self._lock:
            return super().info(address)

    def cat_file(self, address, start=None, end=None):
        self._ask()
        with self._lock:
            return super().cat_file(address, start, end)

    def find(self, address, detail=True):
        self._ask()
        with self._lock:
            return super().find(address, detail)

    def pipe_file(self, address, data):
        self._change(address)
        path = self._path(address)
        with self._lock:
            self.memory.store[path] = MemoryFile(self.memory, path, data)

    def put_file(self, path, address):
        self.pipe_file(address, Path(path).read_bytes())

    def rm_file(self, address):
        self._change(address, "-")
        with self._lock:
            if self.memory.store.pop(self._path(address), None) is None:
                raise FileNotFoundError(address)

    def _ask(self):
        if self.always:
            raise Answered(self.always)

    def _change(self, address, sign=""):
        self._ask()
        name = address.removeprefix(f"{self.address}/")
        if name.startswith(".locks/"):
            return
        with self._lock:
            fault = self.faults.popleft() if self.faults else None
            if fault:
                raise Answered(fault)
            if self.dies is not None and len(self.wrote) >= self.dies:
                raise Killed
            self.wrote.append(sign + name)
