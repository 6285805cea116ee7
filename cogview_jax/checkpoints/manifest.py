"""What a folder of files must hold, byte for byte, so that damage is found and named.

`manifest.json` lists every other file of the folder with its size and sha256, and the sha256 of
that list: whatever changes on disk afterwards, the manifest included, no longer fits. It proves
that the files are those that were written, and not who wrote them.
"""

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import JSON_LIMIT, is_clutter, read_regular, sha256_file, sync
from cogview_jax.runtime.paths import inside

FORMAT = 1
NAME = "manifest.json"
#: Files hashed at once. Hashing is bound by one core, about a gigabyte a second.
THREADS = 4


def hashed(folder: Path) -> dict[str, tuple[int, str]]:
    """The size and the sha256 of every file of `folder`, as a manifest lists them; synced."""
    names = sorted(_names(folder))
    with ThreadPoolExecutor(THREADS) as pool:
        entries = pool.map(lambda name: _recorded(folder / name), names)
        return dict(zip(names, entries, strict=True))


def write_manifest(folder: Path, files: Mapping[str, Sequence] | None = None) -> None:
    """Lists files in the manifest of `folder`; all of it is on disk then.

    Args:
        folder: holds the files, or some of them.
        files: what `hashed` gives; by default of `folder`.
    """
    files = hashed(folder) if files is None else files
    (folder / NAME).write_text(_text(files), encoding="utf-8")
    sync(folder / NAME)
    for directory in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(directory)


def has_manifest(folder: Path) -> bool:
    """Whether there is anything to compare the folder with."""
    return (folder / NAME).exists()


def listed(folder: Path) -> dict[str, tuple[int, str]]:
    """The size and the sha256 of every file that the manifest lists.

    Raises:
        ValueError: it is damaged.
        OSError: it is not there, or cannot be read.
    """
    return _read(folder / NAME)


def find_damage(
    folder: Path,
    part: int = 0,
    parts: int = 1,
    within: Collection[str] | None = None,
    *,
    whole: bool = True,
) -> list[str]:
    """Compares a folder with its manifest.

    Args:
        folder: where it lies.
        part: of the work shared by `parts` processes, the share of this one. Only the first looks
            for files that are not listed.
        within: the folders in it that are compared; all of it by default.
        whole: whether all files have to be there; otherwise those that are there are compared.

    Returns:
        One "NAME: WHAT IS WRONG" for every file that is not as it was written. What file managers
        leave is no damage.

    Raises:
        SystemFault: the machine cannot read a file, which says nothing about it.
    """
    try:
        files = _read(folder / NAME)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{NAME}: {'is missing' if isinstance(error, FileNotFoundError) else error}"]
    if within is not None:
        files = {name: entry for name, entry in files.items() if name.split("/")[0] in within}
    if not whole:
        files = {name: entry for name, entry in files.items() if (folder / name).exists()}
    # By size, largest first and in turn, every process gets about as much to read.
    order = sorted(files, key=lambda name: (-files[name][0], name))
    own = order[part::parts]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _difference(folder, name, *files[name]), own)
        wrong = [f"{name}: {what}" for name, what in zip(own, found, strict=True) if what]
    if part == 0 and within is None:
        extra = sorted(set(_names(folder)) - set(files))
        wrong += [f"{name}: is not in {NAME}" for name in extra]
    return wrong


def _recorded(path: Path) -> tuple[int, str]:
    sync(path)
    return path.stat().st_size, sha256_file(path)


def _difference(folder: Path, name: str, size: int, sha256: str) -> str | None:
    """How a file differs from its manifest entry, in words; None if it does not."""
    try:
        inside(folder, name)
    except InputError:
        return "leads out of the folder"
    path = folder / name
    try:
        status = retried(path.stat, str(path))
        if not stat.S_ISREG(status.st_mode):
            return "is no file"
        if status.st_size != size:
            return f"has {status.st_size} bytes, expected {size}"
        digest = retried(lambda: sha256_file(path), str(path))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if digest == sha256 else f"has sha256 {digest[:12]}, expected {sha256[:12]}"


def _names(folder: Path) -> Iterable[str]:
    for directory, _, names in os.walk(folder):
        for name in names:
            relative = (Path(directory) / name).relative_to(folder).as_posix()
            if relative != NAME and not is_clutter(relative):
                yield relative


def _text(files: Mapping[str, Any]) -> str:
    listed = json.dumps(files, sort_keys=True)
    whole = {"format": FORMAT, "sha256": hashlib.sha256(listed.encode()).hexdigest()}
    return json.dumps(whole | {"files": files}, indent=1, sort_keys=True) + "\n"


def _read(path: Path) -> dict[str, tuple[int, str]]:
    data = retried(lambda: read_regular(path, JSON_LIMIT), str(path))
    text = data.decode(errors="replace")
    try:
        found = json.loads(text)
        files, written = found["files"], found["format"]
        whole = isinstance(files, dict) and _text(files) == text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole, written = False, FORMAT
    if written != FORMAT:
        raise ValueError(f"has format {str(written)[:60]}; this program reads {FORMAT}")
    if not whole or not all(map(_is_entry, files.values())):
        raise ValueError("was changed")
    return files


def _is_entry(entry: Any) -> bool:
    """Whether `entry` has the form of a manifest entry: [bytes, sha256]."""
    return isinstance(entry, list) and [type(value) for value in entry] == [int, str]
