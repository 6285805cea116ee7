"""What a folder of files must hold, byte for byte, so that damage is found and named.

`manifest.json` lists every other file of the folder with its size and sha256, and the sha256 of
that list: whatever changes on disk afterwards, the manifest included, no longer fits. It proves
that the files are those that were written, and not who wrote them.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import sha256_file, sync

FORMAT = 1
NAME = "manifest.json"
#: Files hashed at once. Hashing is bound by one core, about a gigabyte a second.
THREADS = 4


def write_manifest(folder: Path) -> None:
    """Hashes all files of `folder` and lists them in its manifest; all of it is on disk then."""
    names = sorted(_names(folder))
    with ThreadPoolExecutor(THREADS) as pool:
        entries = pool.map(lambda name: _recorded(folder / name), names)
        files = dict(zip(names, entries, strict=True))
    (folder / NAME).write_text(_text(files), encoding="utf-8")
    sync(folder / NAME)
    for directory in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(directory)


def has_manifest(folder: Path) -> bool:
    """Whether there is anything to compare the folder with."""
    return (folder / NAME).exists()


def find_damage(folder: Path, part: int = 0, parts: int = 1) -> list[str]:
    """Compares a folder with its manifest.

    Args:
        folder: where it lies.
        part: of the work shared by `parts` processes, the share of this one. Only the first looks
            for files that are not listed.

    Returns:
        One "NAME: WHAT IS WRONG" for every file that is not as it was written.

    Raises:
        SystemFault: the disk fails, which says nothing of what was written.
    """
    try:
        files = _read(folder / NAME)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{NAME}: {'is missing' if isinstance(error, FileNotFoundError) else error}"]
    # By size, largest first and in turn, every process gets about as much to read.
    order = sorted(files, key=lambda name: (-files[name][0], name))
    own = order[part::parts]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _difference(folder / name, *files[name]), own)
        wrong = [f"{name}: {what}" for name, what in zip(own, found, strict=True) if what]
    if part == 0:
        extra = sorted(set(_names(folder)) - set(files))
        wrong += [f"{name}: is not in {NAME}" for name in extra]
    return wrong


def _recorded(path: Path) -> tuple[int, str]:
    sync(path)
    return path.stat().st_size, sha256_file(path)


def _difference(path: Path, size: int, sha256: str) -> str | None:
    """What a file has instead of what is recorded; None where nothing."""
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes, expected {size}"
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
            if relative != NAME:
                yield relative


def _text(files: dict[str, Any]) -> str:
    listed = json.dumps(files, sort_keys=True)
    whole = {"format": FORMAT, "sha256": hashlib.sha256(listed.encode()).hexdigest()}
    return json.dumps(whole | {"files": files}, indent=1, sort_keys=True) + "\n"


def _read(path: Path) -> dict[str, tuple[int, str]]:
    text = retried(path.read_bytes, str(path)).decode(errors="replace")
    try:
        found = json.loads(text)
        files, written = found["files"], found["format"]
        whole = _text(files) == text
    except (ValueError, KeyError, TypeError, AttributeError):
        whole, written = False, FORMAT
    if written != FORMAT:
        raise ValueError(f"has format {written}; this program reads {FORMAT}")
    if not whole:
        raise ValueError("was changed")
    return files
