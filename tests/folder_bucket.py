"""A folder in the place of a bucket's file system, which several processes see."""

import os
import uuid
from pathlib import Path


class FolderBucket:
    """The part of fsspec's interface that is used of a bucket.

    Attributes:
        fails: names end with one of these where nothing can be written.
    """

    def __init__(self, folder):
        self._folder = Path(folder)
        self.fails: tuple[str, ...] = ()

    def names(self, address):
        """The names of all objects below an address."""
        start = self._path(address)
        files = (path for path in start.rglob("*") if path.is_file())
        return sorted(path.relative_to(start).as_posix() for path in files)

    def info(self, address):
        return {"name": address, "type": "file", "size": self._path(address).stat().st_size}

    def cat_file(self, address, start=None, end=None):
        return self._path(address).read_bytes()[start:end]

    def find(self, address, detail):
        start = address.partition("://")[2].rstrip("/")
        found = (f"{start}/{name}" for name in self.names(address))
        return {name: self.info(f"s3://{name}") for name in found}

    def pipe_file(self, address, data):
        if self.fails and address.endswith(self.fails):
            raise PermissionError(address)
        path = self._path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = self._folder / uuid.uuid4().hex
        part.write_bytes(data)
        os.replace(part, path)

    def put_file(self, path, address):
        self.pipe_file(address, Path(path).read_bytes())

    def rm_file(self, address):
        self._path(address).unlink()

    def _path(self, address):
        return self._folder / address.partition("://")[2]
