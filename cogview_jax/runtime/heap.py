"""Memory that is free within the process, given back to the system."""

import contextlib
import ctypes


def trim_heap() -> None:
    """Gives back what the C library keeps for later, where it can (glibc's malloc_trim).

    Arrays of some megabytes come from its heap, and what they leave behind stays with the process:
    after a model of gigabytes was read, hundreds of megabytes.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
