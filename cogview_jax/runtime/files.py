"""Outputs that are whole or absent, and the hashes that name their contents."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.leftovers import aside_path, remove, temporary_path

#: Of a JSON file that describes something, the most bytes that are read.
JSON_LIMIT = 64 << 20

#: Of <fcntl.h> and <linux/fs.h>: a path is seen from the working folder; swap two names.
_HERE, _EXCHANGE = -100, 2
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

    When the block ends well the result is on disk, and then takes the name `path`, replacing what
    was there; when the block raises, nothing of it is left and `path` is as before. Missing parent
    folders are made. The temporary name ends like the final one, so writers that look at the suffix
    are content, and no other program uses it.

        with atomic_path("out/image.png") as temporary:
            image.save(temporary)

    Raises:
        InputError: a file would replace a folder, or a folder a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.lstat()  # the block must have written it, before the old one is touched
        sync_tree(temporary)
        replace_tree(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        remove(temporary)


def replace_tree(new: Path, path: Path) -> None:
    """Renames the file or folder `new` to `path`, and replaces what is there.

    If the program is killed, `path` is the old one or the new one. Where the file system cannot
    exchange two folders atomically, it may be missing until `remove_leftovers` restores the old
    one. On return the new name is on disk.

    Raises:
        InputError: a file would replace a folder, or a folder a file.
    """
    if new.is_dir():
        check_folder_output(path)
    else:
        check_file_output(path)
    if not path.is_dir():
        os.replace(new, path)
    elif _exchange(new, path):
        remove(new)
    else:
        old = aside_path(path)
        os.replace(path, old)
        os.replace(new, path)
        remove(old)
    sync(path.parent)


def check_file_output(path: str | os.PathLike, flag: str = "") -> None:
    """InputError unless a file can be written to `path`; `flag`, if any, is named with it."""
    if os.fspath(path).endswith(os.sep):
        raise InputError(f"{_named(path, flag)} names a folder: expected the name of a file")
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = _kind(path.stat().st_mode)  # a new file would take the place of a device too
        raise InputError(f"{_named(path, flag)} is a {kind}: expected the name of a file")
    _check_parents(path, flag, written=True)


def check_folder_output(path: str | os.PathLike, flag: str = "", *, replaced: bool = False) -> None:
    """InputError unless a folder can be written to `path`; `flag`, if any, is named with it.

    `replaced` says that it is written as a whole, see `atomic_path`, for which its parent has to be
    writable.
    """
    path = Path(path)
    if os.path.lexists(path) and not path.is_dir():
        raise InputError(f"{_named(path, flag)} is a file: expected the name of a folder")
    _check_parents(path, flag, written=replaced)


def write_file(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a file, atomically; again while the disk fails in a way that may pass.

    Args:
        path: the final name.
        write: writes the file under the name it is given; may be called several times.

    Raises:
        SystemFault: the disk goes on failing.
    """

    def attempt() -> None:
        with atomic_path(path) as temporary:
            write(temporary)

    retried(attempt, str(path))


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as indented UTF-8 JSON, atomically; NaN and infinity are a ValueError."""
    text = json.dumps(obj, ensure_ascii=False, indent=2, allow_nan=False)
    write_file(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        InputError: the path names something else, or the file is larger.
        OSError: it is not there, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise InputError(f"{path}: {size} bytes, expected at most {limit}")
        # Of the limit's size a buffer would be made, which takes longer than reading a photograph.
        # A byte more than there is tells the end; what the kernel writes as it is read has size 0.
        return file.read(min(size + 1, limit) if size else limit)


def open_regular(path: str | os.PathLike) -> BufferedReader:
    """Opens a regular file for reading; links are followed.

    A pipe or a device would be waited for without end, so neither is opened for good.

    Raises:
        InputError: the path names something else.
        OSError: it is not there, or cannot be read.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: expected a file, but this is a {_kind(mode)}")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes of an open file from `offset` on; fewer at its end only.

    The place of the descriptor is not used, so that many threads may share it.
    """
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


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


def sync_tree(path: Path) -> None:
    """Waits until a file, or a folder with all in it, is on disk."""
    if path.is_dir() and not path.is_symlink():
        for directory, _, names in os.walk(path):
            for name in names:
                sync(Path(directory, name))
            sync(directory)
    elif not path.is_symlink():
        sync(path)


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


def _named(path: str | os.PathLike, flag: str) -> str:
    return f"{flag} {path}".strip()


def _check_parents(path: str | os.PathLike, flag: str, *, written: bool) -> None:
    for parent in Path(path).absolute().parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise InputError(f"{_named(path, flag)}: {parent} is a file, expected a folder")
            if written and not os.access(parent, os.W_OK | os.X_OK):
                raise InputError(f"{_named(path, flag)}: {parent} may not be written to")
            return


def _exchange(one: Path, other: Path) -> bool:
    """Gives two folders each other's names in one step; False where that cannot be done.

    Linux can (renameat2), on most of its file systems.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile("\r\n|\n|\r")


def text_lines(data: bytes) -> list[str]:
    """The lines of a UTF-8 file, without their ends and without a byte order mark in front.

    A line ends where lines of files end: with a line feed, a carriage return, or both. Other
    characters that `str.splitlines` ends lines at, such as U+2028 or a form feed, belong to a line.

    Raises:
        ValueError: the bytes are no UTF-8; it says in which line the first such byte stands.
    """
    data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        lines = _LINE_END.split(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        before = _LINE_END.split(data[: error.start].decode("utf-8"))
        value = data[error.start]
        raise ValueError(f"line {len(before)} is no UTF-8 (byte 0x{value:02x})") from None
    # What stands behind the last end is a line only if it holds something.
    return lines if lines[-1] else lines[:-1]
