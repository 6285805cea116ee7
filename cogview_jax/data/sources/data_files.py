"""Finds the files of a data set by what `data.source.path` says, and counts the others."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.record_index import path_within
from cogview_jax.data.remote.addresses import (
    address_problem,
    common_folder,
    is_address,
    is_address_pattern,
    is_web,
    require_packages,
    shown,
)
from cogview_jax.data.remote.addresses import folder_of as address_folder
from cogview_jax.data.remote.files import listed
from cogview_jax.data.remote.files import matches as address_matches
from cogview_jax.data.sources.file_patterns import expanded, folder_of, is_pattern, matches
from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason
from cogview_jax.runtime.paths import path_problem, require_paths


def require_files(settings: Any) -> None:
    """SettingError unless `path` of the settings of a source is empty or names files, all of them
    local or all at addresses, and `index` is empty or a local folder."""
    given = settings.path
    require_paths(settings, "index", *([] if is_address(given) else ["path"]))
    parts = expanded(given) if given else []
    remote = [part for part in parts if is_address(part)]
    both = remote and len(remote) < len(parts)
    problem = "expected paths or addresses, these are both" if both else ""
    for part in parts:
        problem = problem or (address_problem if remote else path_problem)(part)
    if problem:
        said = shown(given) if remote else given
        raise SettingError(f"path = {said!r}: {problem}")


@dataclass(frozen=True)
class DataFiles:
    """Files that hold records.

    Attributes:
        root: the folder in and below which all of them lie, or its address.
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
        return [path_within(self.root, name) for name in self.names]

    @property
    def are_remote(self) -> bool:
        """Whether they lie on another machine."""
        return is_address(self.root)


def find_files(
    path: str, kind: str, ending: str, *, reasons: Mapping[str, str] | None = None
) -> DataFiles:
    """Finds the files that `path` names; see `file_patterns.expanded`.

    Of a folder these are the files with an ending in and below it, none of them hidden. A file
    that is named may be called anything. Whether files at addresses are there is not looked at.

    Args:
        path: what the user gave.
        kind: what the files are called, for messages: "tars".
        ending: theirs, such as ".tar".
        reasons: for endings of others, why they are ignored.

    Raises:
        InputError: something is not there, or there is no such file.
    """
    patterns, ignored = expanded(path), Ignored()
    if any(map(is_address, patterns)):
        return _at_addresses(path, patterns, kind, ending, reasons or {})
    missing = [each for each in patterns if not (is_pattern(each) or os.path.exists(each))]
    if missing:
        raise InputError(
            f"path={path!r}: {missing[0]} is not there"
            + f", nor {counted(len(missing) - 1, 'other')}" * (len(missing) > 1)
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


def _at_addresses(
    path: str, patterns: list[str], kind: str, ending: str, reasons: Mapping[str, str]
) -> DataFiles:
    found, folders, ignored = [], [], Ignored()
    for each in patterns:
        require_packages(each)
        below: list[str] = []
        is_file = is_web(each) or is_address_pattern(each) or each.endswith(ending)
        if not is_file:
            below = list(listed(each))
        folders.append(each.rstrip("/") if below else address_folder(each))
        if is_address_pattern(each):
            found += address_matches(each)
        elif not below:
            found.append(each)
        for address in below:
            name = address.removeprefix(f"{folders[-1]}/")
            hidden = any(part.startswith(".") for part in name.split("/"))
            if name.endswith(ending) and not hidden:
                found.append(address)
            else:
                ignored.add("hidden" if hidden else _reason(name, reasons), name)
    if not found:
        raise InputError(f"path={path!r}: expected {kind}, there are none; {ignored}")
    root = common_folder(folders)
    names = [file.removeprefix(f"{root}/") for file in dict.fromkeys(found)]
    return DataFiles(root, names, patterns, "", ignored)


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
