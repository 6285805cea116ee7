"""Copies of bundles in the user's cache, which any number of processes share.

    KEY/NAME/            a whole copy; KEY is the hash of NAME and of the bytes of bundle.json
    KEY.partial/NAME/    one that is being copied, or was when its program was killed
    KEY.lock             is held by who makes, looks for or deletes the copy
    addresses/HASH       the copy that an address led to

Those that were not used for the longest time are deleted when all are too large, but none that a
program is using.
"""

import contextlib
import hashlib
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from cogview_jax.checkpoints.description import NAME
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_json, replace_tree, sync_tree, write_json
from cogview_jax.runtime.leftovers import remove, remove_leftovers, temporary_path
from cogview_jax.runtime.lock import claimed, is_used, mark_used, patiently_locked
from cogview_jax.runtime.paths import inside, user_cache

#: The folder in the user's cache, and the variable with the most GB in it.
FOLDER, LIMIT = "cogview_jax/bundles", "COGVIEW_BUNDLES_GB"
_USUAL_GB = 100.0
_KEY = re.compile(r"([0-9a-f]{16})(?:\.partial)?")
_ADDRESSES = "addresses"


class CopiedBundles:
    """The folder of the copies."""

    def __init__(self) -> None:
        """Of the environment: `user_cache`, and the limit in COGVIEW_BUNDLES_GB.

        Raises:
            InputError: the limit is no number.
        """
        self.folder = user_cache() / FOLDER
        given = os.environ.get(LIMIT) or str(_USUAL_GB)
        try:
            self._limit = float(given) * 1e9
        except ValueError:
            self._limit = math.nan
        if not self._limit >= 0:
            raise InputError(f"{LIMIT} = {given!r}: expected a number of GB, 0 or more")

    def place(self, name: str, description: bytes) -> Path:
        """Where the copy lies, whether or not it is there yet.

        Args:
            name: what the folder of the bundle is called.
            description: the bytes of its bundle.json.
        """
        key = hashlib.sha256(f"{name}\n".encode() + description).hexdigest()[:16]
        return self.folder / key / name

    @contextlib.contextmanager
    def held(self, place: Path) -> Iterator[None]:
        """Lets one process at a time look for a copy, make it or delete it."""
        if not os.access(self.folder, os.W_OK) and place.exists():  # for everybody to read
            yield
            return
        lock = place.parent.with_suffix(".lock")
        with patiently_locked(lock, str(place), "waiting for another process that copies a bundle"):
            yield

    def partial(self, place: Path) -> Path:
        """The folder to copy into, with what an earlier process left there."""
        folder = place.parent.with_suffix(".partial") / place.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def finish(self, place: Path) -> None:
        """Gives a copy that is whole its name."""
        partial = self.partial(place).parent
        sync_tree(partial)
        replace_tree(partial, place.parent)

    def discard(self, place: Path) -> None:
        """Deletes what was copied of a bundle."""
        remove(self.partial(place).parent)

    def use(self, place: Path) -> None:
        """Keeps the copy from being deleted while this process lives."""
        mark_used(place / NAME)
        with contextlib.suppress(OSError):  # it is somebody else's
            os.utime(place.parent)

    def known(self, address: str) -> Path | None:
        """The copy that an address led to the last time, if it is still there."""
        try:
            found = read_json(self._note(address))
            place = inside(self.folder, found["copy"])
        except (OSError, InputError, TypeError, KeyError):
            return None
        return place if (place / NAME).is_file() else None

    def remember(self, address: str, place: Path) -> None:
        """Notes the copy that an address leads to."""
        if self.known(address) != place:
            name = place.relative_to(self.folder).as_posix()
            write_json(self._note(address), {"address": address, "copy": name})

    def trim(self) -> None:
        """Deletes copies while all are larger than the limit; those in use stay.

        Where another process deletes some at the same time, the rest is left to it.
        """
        with contextlib.suppress(FileNotFoundError):
            remove_leftovers(self.folder)
            found = [path for path in self.folder.iterdir() if _KEY.fullmatch(path.name)]
            sizes = {path: _size(path) for path in found}
            total = sum(sizes.values())
            for path in sorted(found, key=lambda path: path.stat().st_mtime):
                if total > self._limit and self._removed(path):
                    total -= sizes[path]

    def _removed(self, path: Path) -> bool:
        """Deletes a folder that nobody uses; False where somebody does."""
        with claimed(path.with_suffix(".lock"), fresh=False) as held:
            if not held or any(is_used(file) for file in path.glob(f"*/{NAME}")):
                return False
            aside = temporary_path(path)
            os.rename(path, aside)
        remove(aside)
        return True

    def _note(self, address: str) -> Path:
        digest = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()
        return self.folder / _ADDRESSES / digest[:32]


def age(place: Path) -> str:
    """When a copy was made, for messages."""
    return time.strftime("%Y-%m-%d", time.localtime((place / NAME).stat().st_mtime))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
