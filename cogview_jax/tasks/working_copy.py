"""The local folder in which a run works whose workdir is in a bucket.

    KEY/NAME/            the workdir; KEY is the hash of the address, NAME that of the run
    KEY/partial/         what is being copied down, or was when the program was killed
    KEY/described/       config.json, prepared.json and contents.json as they were last asked for
    KEY/owner            a name that no other working copy has
    KEY/sent.json        size and time of the files as they were when they were last copied up
    KEY/part             where this copy may lack files of checkpoints: of a run whose hosts have
                         a copy each, it holds what the processes of this host wrote
    KEY/lock             is held by the run

Some folders are committed: a checkpoint, the bundle. They never change, and one file, the marker,
lists the bytes of all others. It is copied last and deleted first, so that a folder is whole
exactly if its marker is there.
"""

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cogview_jax.checkpoints import description, manifest
from cogview_jax.checkpoints.remote_bundle import bundle_name
from cogview_jax.data.remote.addresses import joined
from cogview_jax.data.remote.bucket_lock import LOCKS
from cogview_jax.data.remote.download import download
from cogview_jax.data.remote.failures import NotThere
from cogview_jax.data.remote.files import read_whole
from cogview_jax.data.remote.folders import RemoteFile, files_of
from cogview_jax.data.remote.writing import write_bytes
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import (
    JSON_LIMIT,
    is_clutter,
    read_json,
    replace_tree,
    write_file,
    write_json,
)
from cogview_jax.runtime.leftovers import remove, remove_leftovers, temporary_path
from cogview_jax.runtime.paths import user_cache
from cogview_jax.runtime.processes import log

#: The folder in the user's cache, and the variable that names another one.
FOLDER, PLACE = "cogview_jax/workdirs", "COGVIEW_WORKDIRS"
#: What tells one run at an address from another that was there before.
RUN = ".workdir.json"
#: By which a folder in a bucket is known to be a workdir.
_DESCRIBED = ("config.json", "prepared.json", "contents.json")
_COMMITTED = re.compile(r"(checkpoints/(\d+)|bundle)/.")
#: Folders of a workdir that stay on the machine.
_PRIVATE = ("damaged", "benchmark.unfinished")


def committed_folder(name: str) -> str:
    """The committed folder that a file lies in, such as checkpoints/20; empty if in none."""
    found = _COMMITTED.match(name)
    return found[1] if found else ""


def marker_of(folder: str) -> str:
    """The marker of a committed folder."""
    return f"{folder}/{description.NAME if folder == 'bundle' else manifest.NAME}"


def step_of(folder: str) -> int:
    """The step of a checkpoint's folder; -1 of another."""
    return int(folder.rpartition("/")[2]) if folder.startswith("checkpoints/") else -1


def newest_step(folders: Iterable[str]) -> int:
    """The step of the newest checkpoint among committed folders; -1 if there is none."""
    return max(map(step_of, folders), default=-1)


@dataclass
class InBucket:
    """What is known of a workdir in a bucket.

    Attributes:
        committed: folder -> the bytes of its marker; none where it has no marker, and is not whole.
        files: name -> size and time of the local file of which all others are copies.
    """

    committed: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)


class WorkingCopy:
    """A local copy of the workdir at an address."""

    def __init__(self, address: str):
        """Makes no folder. The environment says where: COGVIEW_WORKDIRS, or XDG_CACHE_HOME."""
        self.address = address.rstrip("/")
        place = Path(os.environ.get(PLACE) or user_cache() / FOLDER).absolute()
        self.home = place / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self.folder = self.home / bundle_name(self.address)
        self._sent = self.home / "sent.json"
        self._fetched, self._part = self.home / "fetched.json", self.home / "part"

    @property
    def is_part(self) -> bool:
        """Whether the run writes some of its files into the copies of other hosts."""
        return self._part.exists()

    def owner(self) -> str:
        """The name of this copy, by which it holds the bucket."""
        file = self.home / "owner"
        if not file.exists() or not file.read_bytes().isalnum():
            _write(file, uuid.uuid4().hex.encode())
        return file.read_text()

    def described(self) -> Path:
        """A folder with the files that describe the run in the bucket, and nothing else."""
        folder = self.home / "described"
        folder.mkdir(parents=True, exist_ok=True)
        for name in _DESCRIBED:
            try:
                data = read_whole(joined(self.address, name), JSON_LIMIT)
            except NotThere:
                (folder / name).unlink(missing_ok=True)
                continue
            _write(folder / name, data)
        return folder

    def committed(self) -> dict[str, bytes]:
        """The committed folders here, and the bytes of their markers."""
        steps = self.folder / "checkpoints"
        names = os.listdir(steps) if steps.is_dir() else []
        folders = [f"checkpoints/{name}" for name in names if name.isdecimal()]
        found = {}
        for folder in (*folders, "bundle"):
            with contextlib.suppress(FileNotFoundError):  # it is deleted just now
                found[folder] = (self.folder / marker_of(folder)).read_bytes()
        return found

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and time of all other files that are copied."""
        found = {}
        for folder, folders, names in os.walk(self.folder):
            place = Path(folder).relative_to(self.folder)
            folders[:] = [each for each in folders if _is_copied((place / each).as_posix())]
            for name in ((place / name).as_posix() for name in names):
                if _is_copied(name):
                    with contextlib.suppress(FileNotFoundError):
                        found[name] = _about(self.folder / name)
        return found

    def fetch(self, *, part: bool = False) -> InBucket:
        """Copies down what the bucket has and this copy has not; called with both locks held.

        Every whole checkpoint comes. The other files come where they are missing, and all of them
        where the bucket has a newer checkpoint, which another machine has written. A copy of
        another run, that was at the address before, is moved aside.

        Where other hosts have copies, too, the bucket alone counts: what it has not is dropped
        here, since nobody has all of it.

        Args:
            part: whether other hosts have copies, too.

        Raises:
            InputError: the folder in the bucket holds something else than a run, or may not be
                read and written.
            SystemFault: the server goes on failing, or the disk is full.
        """
        found = files_of(self.address)
        self._identify(found)
        remove_leftovers(self.home, owned=True)
        there: dict[str, list[str]] = {}
        for name in found:
            if folder := committed_folder(name):
                there.setdefault(folder, []).append(name)
        whole = [folder for folder, names in there.items() if marker_of(folder) in names]
        markers = {each: read_whole(found[marker_of(each)].address, JSON_LIMIT) for each in whole}
        followed = self._follow(found, markers) if part or self.is_part else None
        here = self.committed()
        behind = newest_step(here) < newest_step(whole)
        known = self._known(found) if followed is None else followed
        known |= self._fetch_files(found, overwrite=behind and followed is None)
        wanted = {folder for folder in whole if folder not in here}
        if behind and here.get("bundle") != markers.get("bundle", here.get("bundle")):
            wanted.add("bundle")
        names = [name for folder in wanted for name in there[folder]]
        self._fetch_committed({name: found[name] for name in names}, markers)
        if part:
            _write(self._part, b"")
        else:
            self._part.unlink(missing_ok=True)
        return InBucket(dict.fromkeys(there, b"") | markers, known)

    def note_sent(self, files: Mapping[str, tuple[int, int]]) -> None:
        """Keeps `InBucket.files` for the next start."""
        write_json(self._sent, {name: list(about) for name, about in files.items()})

    def _known(self, found: Mapping[str, RemoteFile]) -> dict[str, tuple[int, int]]:
        """The files that were copied up before, as far as they are still there."""
        sizes = {name: file.status.size for name, file in found.items() if file.status}
        try:
            noted = {name: (size, time) for name, (size, time) in read_json(self._sent).items()}
        except (FileNotFoundError, InputError, AttributeError, TypeError, ValueError):
            return {}  # all are copied again, which is right if it is damaged
        return {name: about for name, about in noted.items() if sizes.get(name) == about[0]}

    def _identify(self, found: Mapping[str, RemoteFile]) -> None:
        """Sees to it that this is a copy of the run in the bucket, and of no other."""
        names = [name for name in found if not name.startswith(f"{LOCKS}/")]
        run = read_whole(found[RUN].address, JSON_LIMIT) if RUN in found else None
        if run is None and names and not {*names} & {*_DESCRIBED}:
            raise InputError(
                f"--workdir {self.address} holds {min(names)!r}, and no run: choose another folder"
            )
        own = self.folder / RUN
        used = self.folder.exists() and any(self.folder.iterdir())
        if used and (run is None or not own.exists() or own.read_bytes() != run):
            aside = self.home / f"{self.folder.name}-{uuid.uuid4().hex[:8]}"
            os.rename(self.folder, aside)
            self._sent.unlink(missing_ok=True)
            log(
                f"{self.address}: {self.folder} is of another run, which was there before: moved to"
                f" {aside.name}"
            )
        if run is None:
            run = f'{{"run": "{uuid.uuid4().hex}"}}\n'.encode()
            write_bytes(joined(self.address, RUN), run)
        _write(own, run)

    def _fetch_files(
        self, found: Mapping[str, RemoteFile], *, overwrite: bool
    ) -> dict[str, tuple[int, int]]:
        """Copies files outside committed folders down; returns their sizes and times here."""
        return self._bring(
            {
                name: file
                for name, file in found.items()
                if _is_copied(name) and (overwrite or not (self.folder / name).exists())
            }
        )

    def _bring(self, wanted: Mapping[str, RemoteFile]) -> dict[str, tuple[int, int]]:
        """Copies files down, in the place of what is here; returns their sizes and times here."""
        partial = self.home / "partial" / "files"
        remove(partial)  # files of the same size need not be the same
        partial.mkdir(parents=True)
        download(wanted, partial, f"copying {self.address}")
        for name in wanted:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / name, self.folder / name)
        return {name: _about(self.folder / name) for name in wanted}

    def complete(self, folder: str) -> None:
        """Copies down what other hosts have written of a committed folder, which is whole there.

        Raises:
            InputError, SystemFault: as `fetch`.
        """
        found = files_of(joined(self.address, folder))
        self._bring_missing({f"{folder}/{name}": file for name, file in found.items()})

    def _bring_missing(self, found: Mapping[str, RemoteFile]) -> None:
        """Copies down those files of committed folders that are not here."""

        def is_here(name: str, file: RemoteFile) -> bool:
            path = self.folder / name
            size = path.stat().st_size if path.exists() else None
            return file.status is not None and size == file.status.size

        self._bring({name: file for name, file in found.items() if not is_here(name, file)})

    def _follow(
        self, found: Mapping[str, RemoteFile], markers: Mapping[str, bytes]
    ) -> dict[str, tuple[int, int]]:
        """Makes of this copy what the bucket has, but for committed folders that are not here.

        Returns:
            Sizes and times of the files outside committed folders.
        """
        here = self.committed()
        for folder in [*here]:
            if here[folder] != markers.get(folder):
                # Under another name first: what a kill leaves of it is no checkpoint.
                gone = temporary_path(self.home / "gone")
                os.replace(self.folder / folder, gone)
                remove(gone)
                del here[folder]
        self._bring_missing({x: file for x, file in found.items() if committed_folder(x) in here})
        others = {name: file for name, file in found.items() if _is_copied(name)}
        same = self._fetched_before(others)
        self._bring({name: file for name, file in others.items() if name not in same})
        known = {name: _about(self.folder / name) for name in others}
        tags = {name: file.status.tag for name, file in others.items() if file.status}
        write_json(self._fetched, {x: [*known[x], tag] for x, tag in tags.items() if tag})
        return known

    def _fetched_before(self, found: Mapping[str, RemoteFile]) -> set[str]:
        """The files that have changed neither here nor there since `_follow` noted them."""
        try:
            noted = dict(read_json(self._fetched))
        except (FileNotFoundError, InputError, TypeError, ValueError):
            return set()
        return {
            name
            for name, file in found.items()
            if file.status
            and (self.folder / name).exists()
            and noted.get(name) == [*_about(self.folder / name), file.status.tag]
        }

    def _fetch_committed(
        self, wanted: Mapping[str, RemoteFile], markers: Mapping[str, bytes]
    ) -> None:
        """Copies committed folders down, and goes on where an earlier start was killed."""
        partial = self.home / "partial" / "committed"
        folders = {committed_folder(name) for name in wanted}
        for folder in folders:
            marker = partial / marker_of(folder)
            if not marker.exists() or marker.read_bytes() != markers[folder]:
                remove(partial / folder)
                _write(marker, markers[folder])
        partial.mkdir(parents=True, exist_ok=True)
        download(wanted, partial, f"copying {self.address}")
        for folder in sorted(folders, key=step_of):  # the newest checkpoint last: all is there then
            (self.folder / folder).parent.mkdir(parents=True, exist_ok=True)
            replace_tree(partial / folder, self.folder / folder)
        remove(self.home / "partial")


def _is_copied(name: str) -> bool:
    """Whether a file or folder outside the committed ones is copied up and down."""
    first, *_ = parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return not (
        hidden
        or is_clutter(name)
        or first in _PRIVATE
        or first == "checkpoints"
        or first == "bundle"
    )


def _about(path: Path) -> tuple[int, int]:
    """Size and time of a file."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _write(path: Path, data: bytes) -> None:
    write_file(path, lambda temporary: temporary.write_bytes(data))
