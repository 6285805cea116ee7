"""Paths: which ones users may give, and which ones files of others may name.

A user's path is one of a mounted file system, no address. A name that comes out of a file stays
within the folder that the user named.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cogview_jax.runtime.config import SettingError, setting_name
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
            raise SettingError(f"{setting_name(name)} = {value!r}: {problem}")


@contextlib.contextmanager
def named_by(name: str, path: str) -> Iterator[None]:
    """Has an InputError of the block begin with the setting or flag that names the path.

    Where nothing is at a relative path, the line also says which folder it was looked for in: a
    setting may have been written by a run that was started in another one. An error that begins
    with the name already stays as it is, and without a path all do.
    """
    try:
        yield
    except InputError as error:
        if not path or str(error).startswith(name):
            raise
        given = f"{name} {path}" if name.startswith("--") else f"{name} = {path!r}"
        where = ""
        if not (os.path.isabs(path) or os.path.exists(path) or _SCHEME.match(path)):
            where = f" (looked for in {os.getcwd()})"
        message = str(error).removeprefix(f"path={path!r}: ")
        raise InputError(f"{given}{where}: {message}") from error


def user_cache() -> Path:
    """The folder in which programs of this user keep caches: XDG_CACHE_HOME, by default ~/.cache.

    A relative XDG_CACHE_HOME counts for nothing, as the specification of XDG says: each working
    folder would have a cache of its own.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given if os.path.isabs(given) else os.path.expanduser("~/.cache"))


def path_problem(path: str) -> str:
    """What is wrong with a path, in words; empty where nothing is."""
    if not path:
        return "expected a path, this is empty"
    if "\0" in path:
        return "expected a path, and none has a NUL character in it"
    if _SCHEME.match(path):
        return (
            "expected the path of a mounted file system, and no address of a bucket or another"
            " service: mount it, or copy it"
            + "; where addresses are taken, they have two slashes behind the colon"
            * (not path.partition(":")[2].startswith("//"))
        )
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


#: File systems have no longer names.
_LONGEST = 255


def inside(root: str | os.PathLike, name: str) -> Path:
    """The path of `name` in the folder `root`; whether a file is there is another question.

    Raises:
        InputError: it is an absolute path or no name at all, or leads out of the folder by `..` or
            by a link. The message says nothing of who named it.
    """
    root, shown = Path(root), repr(name)[:200]
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{root}: {shown} is no name of a file")
    parts = Path(name).parts
    try:
        longest = max((len(os.fsencode(part)) for part in parts), default=0)
    except UnicodeEncodeError:
        raise InputError(f"{root}: {shown} is no name of a file") from None
    if longest > _LONGEST:
        raise InputError(f"{root}: {shown} is longer than names of files can be")
    outside = f"{root}: {shown} leads out of this folder, and nothing outside it is opened"
    if os.path.isabs(name) or ".." in parts:
        raise InputError(outside)
    if len(parts) == 1 and not os.path.islink(root / name):
        return root / name  # thousands of shards are looked at one by one
    try:
        real = Path(os.path.realpath(root / name))
    except (OSError, RuntimeError):  # a link to itself
        raise InputError(f"{root}: {shown} cannot be followed") from None
    if not real.is_relative_to(os.path.realpath(root)):
        raise InputError(outside)
    return root / name


def check_tree(root: str | os.PathLike) -> None:
    """Refuses a folder in which a link leads out of it, or something is neither file nor folder.

    Raises:
        InputError: its name, and what it is.
    """
    root = Path(root)
    for folder, folders, files in os.walk(root):
        for entry in (*folders, *files):
            path = Path(folder) / entry
            if path.is_symlink():
                inside(root, path.relative_to(root).as_posix())
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise InputError(f"{path}: expected a file or a folder, but this is neither")
