"""Which processes of a run see the same folder: all of them, or those of each host their own."""

import uuid
from dataclasses import dataclass
from pathlib import Path

import jax

from cogview_jax.runtime.files import write_file
from cogview_jax.runtime.kv_store_sync import KVStoreSync


@dataclass(frozen=True)
class FolderShare:
    """The folders behind one path, on all hosts of a run, and the processes that see each.

    Attributes:
        leaders: the first process of each folder, which does what is done once a folder.
        peers: the processes that see the folder of this process.
    """

    leaders: tuple[int, ...]
    peers: tuple[int, ...]

    @classmethod
    def of_all(cls) -> "FolderShare":
        """All processes see one folder."""
        return cls((0,), tuple(range(jax.process_count())))

    @property
    def whole(self) -> bool:
        """Whether there is one folder for all processes."""
        return len(self.leaders) == 1

    @property
    def leads(self) -> bool:
        """Whether this process does what is done once a folder."""
        return jax.process_index() == self.peers[0]

    @property
    def place(self) -> int:
        """The number of this process among its `peers`."""
        return self.peers.index(jax.process_index())


def find_share(folder: Path, sync: KVStoreSync) -> FolderShare:
    """Finds out who sees a folder, by a file that each process writes there.

    Args:
        folder: the path, the same on all processes or not; made where it is missing.
        sync: communicates among the processes, all of which must call this.

    Raises:
        SystemFault, InputError: a process cannot write there.
    """
    if jax.process_count() == 1:
        return FolderShare.of_all()
    number, own = sync.next_number(), jax.process_index()
    names = sync.all_gather(f"{number}/signs", f"sign-{own}-{uuid.uuid4().hex}")
    sign = folder / names[own]
    sync.together(lambda: write_file(sign, lambda temporary: temporary.touch()))
    peers = [process for process, name in enumerate(names) if (folder / name).exists()]
    seen = sync.all_gather(f"{number}/peers", peers)
    sign.unlink()
    return FolderShare(tuple(sorted({first for first, *_ in seen})), tuple(peers))
