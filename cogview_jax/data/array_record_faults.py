"""Errors of the operating system that ArrayRecord's reader tells in words only."""

import errno
import os

from cogview_jax.runtime.faults import is_passing

_PASSING = [number for number in errno.errorcode if is_passing(OSError(number, ""))]


def passing_fault(error: RuntimeError) -> OSError | None:
    """The fault of the machine behind an error of the reader; None where the file is at fault.

    The reader says both as a RuntimeError, the first as in "open() failed: Too many open files". A
    reader that has failed goes on failing: whoever tries again opens another.
    """
    for number in _PASSING:
        if f"failed: {os.strerror(number)}" in str(error):
            return OSError(number, os.strerror(number))
    return None
