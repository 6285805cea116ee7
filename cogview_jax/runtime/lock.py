"""One program at a time in a folder."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cogview_jax.runtime.errors import InputError

#: Seconds for which a lock is waited for: a killed program may need a moment to end.
PATIENCE = 3.0
#: Errors of file systems without locks.
_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def locked(file: Path, what: str, advice: str, patience: float | None = None) -> Iterator[None]:
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

    Raises:
        InputError: another process, or another part of this one, holds the lock.
    """
    file = file.absolute()
    made = [folder for folder in file.parents if not folder.exists()]
    descriptor = _acquire(file, what, advice, PATIENCE if patience is None else patience)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                file.unlink()  # before it is released: who waits for it looks again
            os.close(descriptor)
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _acquire(file: Path, what: str, advice: str, patience: float) -> int | None:
    """The descriptor that holds the lock; None where there are no locks."""
    deadline = time.monotonic() + patience
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # who held it has just removed the folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _UNKNOWN:
                line = f"{what} cannot be locked on its file system: let one program use it only"
                print(line, file=sys.stderr, flush=True)
                return None
            if not isinstance(error, BlockingIOError):
                raise
            if time.monotonic() > deadline:
                raise InputError(
                    f"{what} is in use by {_holder(file)}: wait until it ends, or {advice}"
                ) from None
            time.sleep(0.1)
            continue
        if _is_still(file, descriptor):
            with contextlib.suppress(OSError):  # a full disk: who holds it stays unsaid
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _own().encode(), 0)
            return descriptor
        os.close(descriptor)  # its holder has removed it in the meantime


def _is_still(file: Path, descriptor: int) -> bool:
    """Whether the open file is the one that has the name."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _own() -> str:
    program = " ".join(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).split())[:200]
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    return json.dumps(holder | {"command": program}) + "\n"


def _holder(file: Path) -> str:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return (
            f"process {found['process']} on {found['host']} since {found['since']}"
            f" ({found['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
