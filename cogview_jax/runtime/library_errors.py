"""Errors of the operating system that libraries in C++ tell as text alone."""

import errno
import os
import re
from collections.abc import Callable
from typing import TypeVar

from cogview_jax.runtime.faults import is_passing

T = TypeVar("T")

_CODE = re.compile(r"os_error_code='(\d+)'|OS error (\d+)")
_WORDS = {os.strerror(code): code for code in errno.errorcode}


def system_error(error: BaseException) -> OSError | None:
    """The OSError that a library met, as it is or out of its message; None where it met none.

    Tensorstore writes `os_error_code='5'` or `OS error 5`, array_record the words of the system:
    `pread() failed: Input/output error`.
    """
    if isinstance(error, OSError):
        return error
    text = str(error)
    if found := _CODE.search(text):
        code = int(found[1] or found[2])
        return OSError(code, os.strerror(code))
    for words in re.findall(r"failed: ([^;\[\n]+)", text):
        if code := _WORDS.get(words.strip()):
            return OSError(code, words.strip())
    return None


def raise_faults(work: Callable[[], T]) -> T:
    """`work()`; where a library fails because the machine did, that is the OSError raised."""
    try:
        return work()
    except Exception as error:
        found = system_error(error)
        if found is not None and found is not error and is_passing(found):
            raise found from error
        raise
