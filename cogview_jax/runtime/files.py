"""Outputs that are whole or absent, and the hashes that name their contents."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogview_jax.runtime.errors import InputError

#: Of a JSON file that describes something, the most bytes that are read.
JSON_LIMIT = 64 << 20

_MARK = ".tmp-"
_CLUTTER = {
    *(".DS_Store", ".localized", ".AppleDouble", "__MACOSX", "Icon\r"),
    *(".Spotlight-V100", ".Trashes", ".fseventsd", ".TemporaryItems"),
    *("Thumbs.db", "thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini"),
    *("$RECYCLE.BIN", "System Volume Information"),
    *(".directory", ".hidden", "@eaDir", ".stfolder"),
}


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`, to be written as a file or made as a directory.

    When the block ends well the result takes the name `path`, replacing what was there; when it
    raises, nothing of it is left and `path` is as before. Missing parent folders are made. The
    temporary name ends like the final one, so writers that look at the suffix are content; it holds
    the process id, so two programs never write into one file.

        with atomic_path("out/picture.png") as temporary:
            image.save(temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_MARK}{os.getpid()}-{path.name}")
    _remove(temporary)
    try:
        yield temporary
        temporary.lstat()  # the block must have written it, before the old one is touched
        replace_tree(temporary, path)
    finally:
        _remove(temporary)


def replace_tree(new: Path, path: Path) -> None:
    """Gives the file or folder `new` the name `path`, in place of what is there."""
    if path.is_dir() and not path.is_symlink():
        # A rename does not replace a folder: the old one steps aside first.
        old = path.with_name(f"{_MARK}{os.getpid()}-old-{path.name}")
        _remove(old)
        os.replace(path, old)
        os.replace(new, path)
        _remove(old)
    else:
        os.replace(new, path)


def remove_leftovers(directory: str | os.PathLike) -> None:
    """Deletes what killed programs left half-written directly in `directory`."""
    directory = Path(directory)
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name.startswith(_MARK):
            _remove(path)


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as indented UTF-8 JSON, atomically; NaN and infinity are a ValueError."""
    text = json.dumps(obj, ensure_ascii=False, indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    A pipe or a device would be waited for without end, so neither is opened for good; links are
    followed.

    Raises:
        InputError: the path names something else, or the file is larger.
        OSError: it is not there, or cannot be read.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: expected a file, but this is a {_kind(status.st_mode)}")
        if status.st_size > limit:
            raise InputError(f"{path}: {status.st_size} bytes, expected at most {limit}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)


def read_json(path: str | os.PathLike, *, limit: int = JSON_LIMIT) -> Any:
    """The value that a small JSON file holds.

    Raises:
        InputError: it is no JSON, or not one that this program wrote: the path and what is wrong.
        OSError: it is not there, or cannot be read.
    """
    data = read_regular(path, limit)
    try:
        return json.loads(data)
    except RecursionError:
        raise InputError(f"{path}: damaged: nested too deeply to be read as JSON") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"{path}: damaged: not readable as JSON ({error})") from None


def sync(path: str | os.PathLike) -> None:
    """Waits until a file, or the list of names in a folder, is on disk and not just in memory.

    Nothing is waited for on file systems that know no such request for folders.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sha256_file(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(directory: str | os.PathLike) -> str:
    """The SHA-256 of a folder: the names and contents of its files, in the order of the names.

    The same files give the same hash wherever the folder lies; times, permissions, empty folders
    and what file managers leave (`is_clutter`) do not count.
    """
    directory = Path(directory)
    files = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
    files = {name: path for name, path in files.items() if not is_clutter(name)}
    lines = (f"{sha256_file(files[name])}  {name}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_clutter(name: str) -> bool:
    """Whether a file manager, an archiver or a network drive left the file `name`, a/b/c.

    Finder, Explorer, Dolphin, and drives of other systems write such files into folders that are
    looked at or copied.
    """
    parts = name.split("/")
    return any(part in _CLUTTER or part.startswith("._") for part in parts)


def _kind(mode: int) -> str:
    kinds = {"folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((name for name, holds in kinds.items() if holds(mode)), "device")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
