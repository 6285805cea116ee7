"""Files that are not whole: half-written ones that killed programs leave, and damaged logs.

A temporary name says which process made it, so that only what a dead one left is deleted, and
nothing of the user's whatever it is called:

    .cogview-tmp-HOST-PID-START-N-NAME     to be renamed to NAME when it is whole
    .cogview-old-HOST-PID-START-N-NAME     a folder NAME that steps aside for a new one

HOST stands for the machine and its process ids (containers count anew), PID and START (clock ticks
since the machine booted) for one process among all that ever have this id.
"""

import functools
import hashlib
import itertools
import os
import re
import shutil
import socket
import sys
from pathlib import Path

from cogview_jax.runtime.faults import reason

_NAME = re.compile(r"\.cogview-(tmp|old)-([0-9a-f]{8})-(\d+)-(\d+)-\d+-(.+)", re.DOTALL)
#: Bytes of a name that are kept in a temporary one: file systems allow 255 in all.
_KEPT = 150
_number = itertools.count()


def temporary_path(path: Path) -> Path:
    """A new name beside `path`, which ends as that one does."""
    name = path.name
    while len(os.fsencode(name)) > _KEPT:
        name = name[1:]
    return path.with_name(_made("tmp", name))


def aside_path(path: Path) -> Path:
    """A new name for the folder at `path` while another takes its place."""
    return path.with_name(_made("old", path.name))


def remove_leftovers(directory: str | os.PathLike, *, owned: bool = False) -> None:
    """Deletes what killed programs left half-written directly in `directory`.

    A folder that had stepped aside when its program was killed, and whose place nothing took, gets
    its name back. What a living process writes stays, and so does everything that no program of
    ours has named.

    Args:
        directory: where to look; nothing is done where there is none.
        owned: True for whoever holds a lock on the directory: nobody else writes there, so what
            processes of other machines have left goes too.
    """
    directory = Path(directory)
    for path in list(directory.iterdir()) if directory.is_dir() else ():
        found = _NAME.fullmatch(path.name)
        if found is None or not _is_dead(found[2], found[3], found[4], owned):
            continue
        final = path.with_name(found[5])
        if found[1] == "old" and not os.path.lexists(final):
            os.rename(path, final)
        else:
            remove(path)


def remove(path: Path) -> None:
    """Deletes a file or a folder; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _made(kind: str, name: str) -> str:
    pid = os.getpid()
    return f".cogview-{kind}-{_host()}-{pid}-{_own_start(pid)}-{next(_number)}-{name}"


def _is_dead(host: str, pid: str, start: str, owned: bool) -> bool:
    if host != _host():
        return owned
    return _start(int(pid)) != int(start)


@functools.cache
def _host() -> str:
    try:
        ids = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # no Linux
        ids = 0
    return hashlib.sha256(f"{socket.gethostname()} {ids}".encode()).hexdigest()[:8]


@functools.cache  # by process: a forked one starts anew
def _own_start(pid: int) -> int:
    return _start(pid) or 0


def _start(pid: int) -> int | None:
    """When a living process started, in clock ticks; 0 where that is not known, None if dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # somebody else's
        pass
    return 0


def set_aside(path: str | os.PathLike, why: str) -> None:
    """Renames a damaged log to NAME.damaged, NAME.damaged-2, ..., and says so in one line.

    Nothing in it is lost, and the run that meets it goes on; also where it cannot be renamed.
    """
    path = Path(path)
    names = itertools.chain(("",), (f"-{number}" for number in itertools.count(2)))
    places = (path.with_name(f"{path.name}.damaged{name}") for name in names)
    place = next(place for place in places if not os.path.lexists(place))
    try:
        os.rename(path, place)
        fate = f"moved to {place.name}, and begun anew"
    except OSError as error:
        fate = f"it stays where it is ({reason(error)})"
    print(f"{path}: {why}: {fate}", file=sys.stderr, flush=True)
