"""Errors of the operating system: which of them are transient, and how they are retried.

A network disk that fails for a moment, or a machine that is short of memory for a moment, says
nothing about the data. Files that are read during the work are therefore read through `retried`: a
transient fault is retried, a persistent one is a `SystemFault`, and only other errors can mean bad
records or bad input.
"""

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.processes import log

T = TypeVar("T")

#: Seconds before each further try.
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)

_PASSING = {
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "EAGAIN", "EBUSY", "EINTR", "ENOLCK", "EDEADLK"),
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
        *("ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENOLINK", "ECOMM"),
        *("ESHUTDOWN", "EPROTO"),
    )
    if hasattr(errno, name)
}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_CODE = re.compile(r"os_error_code='(\d+)'|OS error (\d+)")
#: The words of the system in a library's message; of Gloo they are the last, behind an address.
_SAID = re.compile(r"(?:failed: |\bGloo [^\n]*: )([^:;\[\n]+)")
_WORDS = {os.strerror(code): code for code in errno.errorcode}
#: What Gloo says of a process that has gone.
_WORDS["Connection closed by peer"] = errno.ECONNRESET


def is_passing(error: BaseException) -> bool:
    """Whether the machine failed in a way that may pass: a disk, a network, memory, open files."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in _PASSING
    )


def is_full(error: BaseException) -> bool:
    """Whether a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_fault(error: BaseException) -> bool:
    """Whether the machine failed, and neither the data nor the user."""
    return isinstance(error, SystemFault) or is_passing(error) or is_full(error)


def reason(error: BaseException) -> str:
    """The system's text for an error, without number and path: "No space left on device"."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return " ".join(str(error).split()) or type(error).__name__


def where(error: BaseException) -> str:
    """Returns "PATH: " for an error of the system that names a file, else ""."""
    path = getattr(error, "filename", None)
    return f"{path}: " if path else ""


def system_error(error: BaseException) -> OSError | None:
    """The OSError that a library met, as it is or out of its message; None where it met none.

    Tensorstore writes `os_error_code='5'` or `OS error 5` in the midst of pages about an array,
    array_record the words of the system: `pread() failed: Input/output error`. tensorflow_datasets
    has an error of its own for it, raised from that of the system.
    """
    if isinstance(error, OSError):
        return None if error.errno is None else error  # without a number it is a library's own
    text = str(error)
    if found := _CODE.search(text):
        code = int(found[1] or found[2])
        return OSError(code, os.strerror(code))
    for words in _SAID.findall(text):
        if number := _WORDS.get(words.strip()):
            return OSError(number, words.strip())
    cause = None if error.__cause__ is None else system_error(error.__cause__)
    return cause if cause and is_fault(cause) else None


def raise_faults(work: Callable[[], T]) -> T:
    """`work()`; where a library fails because the machine did, that is the OSError raised."""
    try:
        return work()
    except Exception as error:
        found = system_error(error)
        if found is not None and found is not error and is_passing(found):
            raise found from error
        raise


@contextlib.contextmanager
def at_work(kept: str) -> Iterator[None]:
    """From here on what the system refuses is no mistake of the user's.

    Before, a file that cannot be opened is one that the user named wrongly; in the block it is a
    disk or a network that failed, which a restart may mend.

    Args:
        kept: what is not lost if the block fails, for the message.

    Raises:
        SystemFault: the system refused something, or memory was short.
    """
    try:
        yield
    except Exception as error:
        system = error if isinstance(error, MemoryError) else system_error(error)
        if system is None or isinstance(error, (BrokenPipeError, InputError, SystemFault)):
            raise
        raise SystemFault(f"{where(system)}{reason(system)}; {kept}") from error


class TolerateDiskErrors:
    """A context manager in which an OSError loses what is written, but does not end the run.

    One line reports it, and no other until the same thing could be written again.

    with tolerate_disk_errors("metrics", step):
        ...
    """

    def __init__(self) -> None:
        """Nothing has failed."""
        self._failing: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, what: str, step: int) -> Iterator[None]:
        """`what` is written in the block, after `step`."""
        try:
            yield
            self._failing.discard(what)
        except OSError as error:
            if what not in self._failing:
                log(f"step {step}: {what} could not be written ({error}); training goes on")
            self._failing.add(what)


def retried(work: Callable[[], T], what: str) -> T:
    """`work()`, again after longer and longer pauses while it meets faults that may pass.

    Args:
        work: may be called several times.
        what: is read or written, for messages: the path of a file, mostly.

    Raises:
        SystemFault: the fault stayed. Every other error is raised as it is, at once.
    """
    for tries, pause in enumerate((*PAUSES, None), 1):
        try:
            return work()
        except (OSError, MemoryError) as error:
            if not is_passing(error):
                raise
            if pause is None:
                raise SystemFault(f"{what}: {reason(error)} ({tries} tries)") from error
            if tries == 1:
                print(f"{what}: {reason(error)}; trying again", file=sys.stderr, flush=True)
        time.sleep(pause)
    raise AssertionError("the last pause is None")
