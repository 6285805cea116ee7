"""Reads images out of files at addresses, and keeps them in a local cache."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cogview_jax.data.remote.addresses import is_web
from cogview_jax.data.remote.byte_cache import CACHE, ByteCache
from cogview_jax.data.remote.files import RemoteStatus, changed, file_status, read_range
from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.paths import require_paths, user_cache

#: Seconds for which a bucket is not asked again whether a file was changed.
_TRUSTED = 600.0


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """How files at addresses are read: the section `data.source.remote`.

    Attributes:
        requests: records that are read at a time. Each waits for the network most of the time.
        cache: the folder where images that were read are kept for the next epoch, which any number
            of runs may share. If it is empty, it is cogview_jax/remote in the user's cache.
        cache_gb: the most GB in that folder; those that were not used for the longest time are
            deleted first. 0 keeps none.
    """

    requests: int = 32
    cache: str = ""
    cache_gb: float = 10.0

    def __post_init__(self):
        require_range(self, "requests", at_least=1, at_most=1024)
        require_range(self, "cache_gb", at_least=0, at_most=2**20)
        require_paths(self, "cache")


class RemoteReader:
    """Parts of files at addresses; many threads may read at once."""

    def __init__(self, config: RemoteConfig):
        """Opens the cache."""
        self.requests = config.requests
        folder = Path(config.cache) if config.cache else user_cache() / CACHE
        limit = int(config.cache_gb * 1e9)
        self._cache = ByteCache(folder, limit) if limit else None
        self._lock = threading.Lock()
        self._checked: dict[str, float] = {}

    def read(self, address: str, offset: int, size: int, status: RemoteStatus) -> bytes:
        """A part of a file that was `status` when it was indexed; see `files.read_range`."""
        name = address, status.size, status.tag, offset, size
        data = self._cache.get(*name) if self._cache else None
        if data is None or len(data) != size:
            self._check(address, status)
            data = read_range(address, offset, size, status)
            if self._cache:
                self._cache.put(data, *name)
        return data

    def _check(self, address: str, status: RemoteStatus) -> None:
        """InputError where a file in a bucket was changed; web servers say so in each answer."""
        if is_web(address):
            return
        now = time.monotonic()
        with self._lock:
            due = now - self._checked.setdefault(address, now) > _TRUSTED
            if due:
                self._checked[address] = now
        if due and file_status(address) != status:
            raise changed(address)
