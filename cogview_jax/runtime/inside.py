"""Names of files that come out of files, kept within the folder that the user named."""

import os
from pathlib import Path

from cogview_jax.runtime.errors import InputError

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
