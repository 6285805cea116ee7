"""Which paths are taken: those of a mounted file system, and no addresses."""

import os
import re
from pathlib import Path

from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.errors import InputError

#: gs://, s3://, file://; with one slash too, as `Path` leaves them. A drive has one letter.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path: str | Path, name: str = "") -> Path:
    """`path`, once it is known to be one: a bucket's address would be a local folder called "gs:".

    Args:
        path: what the user gave.
        name: of the flag or setting, for the message; the path alone where it is empty.

    Raises:
        InputError: an address, an empty text, a text that no file system takes, or one that is no
            UTF-8.
    """
    problem = path_problem(str(path))
    if not problem and not _is_unicode(os.path.abspath(path)):
        problem = "expected a path of UTF-8 characters, which arrays are stored under"
    if problem:
        raise InputError(f"{name or 'path'} = {str(path)!r}: {problem}")
    return Path(path)


def require_paths(settings: object, *names: str) -> None:
    """SettingError for the first of the fields `names` that is neither empty nor a local path."""
    for name in names:
        value = getattr(settings, name)
        problem = path_problem(value) if value else ""
        if not problem and not _is_unicode(value):
            problem = "expected a path of UTF-8 characters, which config.json can hold"
        if problem:
            raise SettingError(f"{name} = {value!r}: {problem}")


def path_problem(path: str) -> str:
    """What is wrong with a path, in words; empty where nothing is."""
    if not path:
        return "expected a path, this is empty"
    if "\0" in path:
        return "expected a path, and none has a NUL character in it"
    if _SCHEME.match(path):
        return (
            "expected the path of a mounted file system; addresses of buckets and other services"
            " are not read or written: mount it, or copy it"
        )
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
