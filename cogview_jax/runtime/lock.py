"""One program at a time in a folder, and files that programs are using."""

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.progress import waiting

#: Seconds for which a lock is waited for: a killed program may need a moment to end.
PATIENCE = 3.0
#: What to do where a file system knows no locks.
ALONE = "let one program use it only"
#: Errors of file systems without locks.
_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def locked(
    file: Path, what: str, advice: str, patience: float | None = None, unlocked: str = ALONE
) -> Iterator[None]:
    """Holds the lock `file` in the block. A second process is refused, with the holder's name.

    The system releases the lock when the process that holds it ends, however it ends. It holds
    among processes of one machine, and among machines where their file system passes locks on (NFS
    does; where it knows no locks, a line says so). The file is removed at the end, with the folders
    that were made for it if nothing else is in them.

    Args:
        file: the lock, in or beside what it guards.
        what: is guarded, for the message: "the workdir runs/demo".
        advice: what to do instead of waiting: "choose another --workdir".
        patience: the seconds for which it is waited for; PATIENCE if None. Who waits for ever lets
            the first do the work and finds it done.
        unlocked: what to do where the file system knows no locks.

    Raises:
        InputError: another process, or another part of this one, holds the lock.
    """
    file = file.absolute()
    made = [folder for folder in file.parents if not folder.exists()]
    descriptor = _acquire(file, what, advice, PATIENCE if patience is None else patience, unlocked)
    try:
        yield
    finally:
        if descriptor is not None:
            _release(file, descriptor)
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


@contextlib.contextmanager
def patiently_locked(
    file: Path, what: str, waits_for: str, unlocked: str = ALONE
) -> Iterator[None]:
    """Holds the lock `file` in the block, however long another process keeps it.

    Args:
        file, what, unlocked: as for `locked`.
        waits_for: what a line says every ten seconds while it waits.
    """
    with contextlib.ExitStack() as held:
        with waiting(waits_for):
            held.enter_context(locked(file, what, "", math.inf, unlocked))
        yield


@contextlib.contextmanager
def claimed(file: Path, *, fresh: bool) -> Iterator[bool]:
    """Tells the block whether it holds the lock `file`, which is not waited for.

    A file system may grant a lock and pass it on to no other machine. All of them see the file,
    however. So among many pieces of work with a lock each, those whose file is not there come
    first; the file of another is there because its holder works, or was killed.

    Args:
        file: the lock, in a folder that is there; removed at the end.
        fresh: claim it only if there is no such file. Otherwise also what a killed process left.
    """
    try:
        descriptor = _lock(file, os.O_EXCL if fresh else 0)
    except (BlockingIOError, FileExistsError, FileNotFoundError):
        yield False
        return
    try:
        yield True
    finally:
        _release(file, descriptor)


def mark_used(file: Path) -> None:
    """Lets `is_used` tell other processes that this one uses a file, until this one ends.

    Nothing is marked where the file system knows no locks.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    # The system closes it when the process ends.


def is_used(file: Path) -> bool:
    """Whether a process that is alive has marked a file as used."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(descriptor)
    return False


def holder(file: Path) -> str:
    """Who holds a lock, for messages."""
    try:
        return described(file.read_bytes())
    except OSError:
        return described(b"")


def described(note: bytes) -> str:
    """Who wrote a note of `own_note`, for messages."""
    try:
        found = json.loads(note)
        return (
            f"process {found['process']} on {found['host']} since {found['since']}"
            f" ({found['command']})"
        )
    except (ValueError, KeyError, TypeError):
        return "another process"


def own_note() -> bytes:
    """What a lock of this process says of its holder: a line of JSON."""
    program = " ".join(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).split())[:200]
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    found = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    return json.dumps(found | {"command": program}).encode() + b"\n"


def _acquire(file: Path, what: str, advice: str, patience: float, unlocked: str) -> int | None:
    """The descriptor that holds the lock; None where there are no locks."""
    deadline = time.monotonic() + patience
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(file)
        except FileNotFoundError:  # who held it has just removed it, or the folder
            continue
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{what} is in use by {holder(file)}: wait until it ends, or {advice}"
                ) from None
            time.sleep(0.1)
            continue
        if descriptor is None:
            line = f"{what} cannot be locked on its file system: {unlocked}"
            print(line, file=sys.stderr, flush=True)
        return descriptor


def _lock(file: Path, flags: int = 0) -> int | None:
    """The descriptor that holds the lock, in which its holder stands; None without locks.

    Raises:
        BlockingIOError: another holds it.
        FileNotFoundError: its holder has removed it in the meantime, or there is no folder.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_still(file, descriptor):
            raise FileNotFoundError
    except OSError as error:
        os.close(descriptor)
        if error.errno in _UNKNOWN:
            return None
        raise
    with contextlib.suppress(OSError):  # a full disk: who holds it stays unsaid
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, own_note(), 0)
    return descriptor


def _release(file: Path, descriptor: int | None) -> None:
    with contextlib.suppress(OSError):
        file.unlink()  # before it is released: who waits for it looks again
    if descriptor is not None:
        os.close(descriptor)


def _is_still(file: Path, descriptor: int) -> bool:
    """Whether the open file is the one that has the name."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False
