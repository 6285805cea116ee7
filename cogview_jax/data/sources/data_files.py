"""Finds the files of a data set by what `data.source.path` says, and counts the others."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.sources.file_patterns import expanded, folder_of, is_pattern, matches
from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason
from cogview_jax.runtime.paths import path_problem, require_paths


def require_files(settings: Any) -> None:
    """SettingError unless `path` of some settings, and `index`, are empty or local paths."""
    require_paths(settings, "path", "index")
    for part in expanded(settings.path) if settings.path else ():
        if problem := path_problem(part):
            raise SettingError(f"path = {settings.path!r}: {problem}")


@dataclass(frozen=True)
class DataFiles:
    """Files that hold records.

    Attributes:
        root: the folder in and below which all of them lie.
        names: their paths within it, in the order that they were given in, folders sorted.
        patterns: what they were given by, within the root.
        beside: the first folder that was given, or that the first pattern names.
        ignored: other files in folders that were given.
    """

    root: str
    names: list[str]
    patterns: list[str]
    beside: str
    ignored: Ignored

    @property
    def paths(self) -> list[str]:
        """The paths of the files."""
        return [os.path.join(self.root, name) for name in self.names]


def find_files(
    path: str, kind: str, ending: str, *, reasons: Mapping[str, str] | None = None
) -> DataFiles:
    """Finds the files that `path` names; see `file_patterns.expanded`.

    Of a folder these are the files with an ending in and below it, none of them hidden. A file
    that is named may be called anything.

    Args:
        path: what the user gave.
        kind: what the files are called, for messages: "tars".
        ending: theirs, such as ".tar".
        reasons: for endings of others, why they are ignored.

    Raises:
        InputError: something is not there, or there is no such file.
    """
    patterns, ignored = expanded(path), Ignored()
    missing = [each for each in patterns if not (is_pattern(each) or os.path.exists(each))]
    if missing:
        raise InputError(
            f"path={path!r}: {missing[0]} is not there"
            + f" (nor are {len(missing) - 1} others)" * (len(missing) > 1)
        )
    found: list[str] = []
    for each in patterns:
        if os.path.isdir(each):
            found += _below(each, ending, reasons or {}, ignored)
        else:
            found += matches(each) if is_pattern(each) else [each]
    if not found:
        raise InputError(f"path={path!r}: expected {kind}, there are none; {ignored}")
    folders = [folder_of(each) for each in patterns]
    root = os.path.commonpath(folders)
    names = [os.path.relpath(file, root) for file in dict.fromkeys(found)]
    within = [os.path.relpath(each, root) for each in patterns]
    return DataFiles(root, names, within, folders[0], ignored)


def _below(folder: str, ending: str, reasons: Mapping[str, str], ignored: Ignored) -> Iterator[str]:
    """Yields the files with an ending in and below a folder, and counts others.

    Linked folders count, but each real one only once, so that links in a circle end.
    """
    listed = set()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if real in listed:
            folders.clear()
            continue
        listed.add(real)
        for name in sorted(names):
            path = os.path.join(place, name)
            if name.endswith(ending) and not name.startswith("."):
                yield path
            else:
                ignored.add(_reason(name, reasons), os.path.relpath(path, folder))


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed: {reason(error)}")


def _reason(name: str, reasons: Mapping[str, str]) -> str:
    """Why a file is ignored."""
    if name.startswith("."):
        return "hidden"
    for ending, why in reasons.items():
        if name.endswith(ending):
            return why
    ending = os.path.splitext(name)[1]
    return f"of ending {ending}" if ending else "without an ending"
