"""Work that many processes share through files alone: shards of a folder, which appear whole.

A shard follows from its number, whoever writes it. A lock for each keeps two processes from the
same work, no more than that: where locks do not hold, a shard is written twice, and is the same.
The system releases the lock of a process that ends, however it ends, and another process takes the
shard over.

DIR/NAME-00000.ENDING             a shard
DIR/.NAME-00000.lock              while a process writes the shard, and after it was killed
"""

import abc
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cogview_jax.runtime.lock import claimed, holder
from cogview_jax.runtime.progress import INTERVAL

#: Seconds after which a process that waits for others looks again.
PAUSE = 0.5


class SharedShards(abc.ABC):
    """The shards of a folder, by number, and which process is at work on which."""

    @abc.abstractmethod
    def path(self, shard: int) -> Path:
        """The file of `shard`."""

    @abc.abstractmethod
    def is_whole(self, shard: int) -> bool:
        """Whether `shard` is written."""

    @contextlib.contextmanager
    def claim(self, shard: int, *, fresh: bool) -> Iterator[bool]:
        """Tells the block whether this process alone writes `shard`; see `runtime.lock.claimed`."""
        with claimed(self._lock(shard), fresh=fresh) as mine:
            yield mine

    def name(self, shard: int) -> str:
        """The name of the file of `shard`."""
        return self.path(shard).name

    def holder(self, shard: int) -> str:
        """Which process writes `shard`, for messages."""
        return holder(self._lock(shard))

    def _lock(self, shard: int) -> Path:
        path = self.path(shard)
        return path.with_name(f".{path.stem}.lock")


def write_together(
    shards: SharedShards, missing: Callable[[], Sequence[int]], write: Callable[[int], None]
) -> None:
    """Writes shards until all are whole, together with all processes that do so at the time.

    Each process takes a shard that nobody writes and that is not there yet, again and again, and
    waits in the end for what others have taken, which it takes over when they are killed.

    Args:
        shards: the folder.
        missing: looks which shards are not whole.
        write: writes one of them.
    """
    waited = 0.0
    while left := missing():
        if _write_one(shards, left, write):
            waited = 0.0
            continue
        time.sleep(PAUSE)
        waited += PAUSE
        if waited == INTERVAL:
            print(
                f"waiting for shards that other processes write ({len(left)}), such as"
                f" {shards.name(left[0])}: {shards.holder(left[0])}",
                file=sys.stderr,
                flush=True,
            )


def _write_one(shards: SharedShards, left: Sequence[int], write: Callable[[int], None]) -> bool:
    """Writes a missing shard; False where other processes are at work on all of them."""
    for fresh in (True, False):
        for shard in left:
            with shards.claim(shard, fresh=fresh) as mine:
                if not mine:
                    continue
                if not shards.is_whole(shard):  # nobody has just written it
                    write(shard)
                return True
    return False
