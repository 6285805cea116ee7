"""Finds the images and caption files in and below a folder, and counts all other files."""

import errno
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.images import SUFFIXES
from cogview_jax.data.record_index import Stamp, stamp
from cogview_jax.data.record_index_writer import BESIDE
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError

LISTING = "captions.jsonl"
#: Files that may list the images of a folder; the last two are those of Hugging Face's imagefolder.
LISTINGS = (LISTING, "metadata.jsonl", "metadata.csv")


@runtime_checkable
class Paths(Protocol):
    """Paths by number; `data.records.BadRecord` for what cannot be one."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, i: int, /) -> str:
        """Path number `i`."""


@dataclass(frozen=True)
class FolderScan:
    """The contents of a folder and of all below it.

    Attributes:
        images: paths of the images within the folder, sorted, with slashes.
        texts: how many of the images have a file with the same name and the ending .txt.
        ignored: all other files.
    """

    images: Paths
    texts: int
    ignored: Ignored


@dataclass(frozen=True)
class FolderContents:
    """The contents of one folder.

    Attributes:
        folder: its path within that which is scanned; empty for that one itself.
        images: the names of its images, sorted.
        texts: how many of them have a file with the same name and the ending .txt.
        stamp: tells that the folder was changed after it was listed.
    """

    folder: str
    images: list[str]
    texts: int
    stamp: Stamp


def scan_folder(root: str, listing: str = LISTING, most: int | None = None) -> FolderScan | None:
    """Lists a folder and all folders below it, see `walk`; None for more than `most` images."""
    images: list[str] = []
    texts, ignored = 0, Ignored()
    for found in walk(root, ignored, listing):
        images += [os.path.join(found.folder, name) for name in found.images]
        texts += found.texts
        if most is not None and len(images) > most:
            return None
    return FolderScan(sorted(images), texts, ignored)


def walk(root: str, ignored: Ignored, listing: str = LISTING) -> Iterator[FolderContents]:
    """Yields the contents of a folder and of all folders below it. No file is opened.

    A file is an image if it has the ending of one and no leading dot: macOS leaves "._1.png" beside
    "1.png". Links to folders are followed, wherever they lead, because only the maker of the folder
    can have made them. Each real folder is listed once, under its own name rather than a link's, so
    that links in a circle end. The `listing` of the folder itself is not ignored.

    Args:
        root: the folder.
        ignored: where all other files are counted.
        listing: see above.

    Raises:
        InputError: the folder itself cannot be listed.
        SystemFault: the machine cannot list one of the folders.
    """
    listed: set[str] = set()
    links = [""]
    while links:
        found: list[str] = []
        for link in links:
            yield from _tree(root, link, found, listed, ignored, listing)
        links = sorted(found)


def _tree(
    root: str, top: str, links: list[str], listed: set[str], ignored: Ignored, listing: str
) -> Iterator[FolderContents]:
    """Yields each folder from `top` on that is not yet `listed`; adds the `links` in it."""
    stack = [top]
    while stack:
        folder = stack.pop()
        path = os.path.join(root, folder) if folder else root
        real = os.path.realpath(path)
        if real in listed:
            ignored.add("linked folders that are there already", folder)
            continue
        listed.add(real)
        try:
            when, files, folders, linked = faults.retried(functools.partial(_listed, path), path)
        except OSError as error:
            if not folder:
                raise InputError(f"{root}: cannot be listed: {faults.reason(error)}") from None
            ignored.add(f"folders that cannot be listed: {faults.reason(error)}", folder)
            continue
        images, texts = _sorted(folder, files, ignored, listing)
        yield FolderContents(folder, images, texts, when)
        links += [os.path.join(folder, name) for name in linked]
        stack += [os.path.join(folder, name) for name in folders]


def _listed(path: str) -> tuple[Stamp, list[str], list[str], list[str]]:
    """The stamp of a folder, and the names of the files, folders and linked folders in it."""
    before = stamp(os.stat(path))  # a change during the listing is one after it
    files, folders, linked = [], [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if not _is_folder(entry):
                files.append(entry.name)
            elif entry.is_symlink():
                linked.append(entry.name)
            elif entry.name != BESIDE:
                folders.append(entry.name)
    return before, files, folders, linked


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.ENOTDIR):  # The link leads nowhere.
            return False
        raise


def _sorted(folder: str, files: list[str], ignored: Ignored, listing: str) -> tuple[list[str], int]:
    """The images among the files of a folder, and how many have texts; counts the others."""
    shown = [name for name in sorted(files) if not name.startswith(".")]
    own = [name for name in shown if _ending(name).lower() in SUFFIXES]
    stems = {name[: -len(_ending(name))] for name in own}
    texts = set()
    for name in sorted({*files} - {*own}):
        ending, path = _ending(name), os.path.join(folder, name)
        if ending == ".txt" and name[:-4] in stems:
            texts.add(name[:-4])
        elif name.startswith("."):
            ignored.add("hidden", path)
        elif folder and name in LISTINGS:
            ignored.add(f"{name} of sub folders", path)
        elif folder or name != listing:
            ignored.add(f"of ending {ending}" if ending else "without an ending", path)
    return own, sum(name[: -len(_ending(name))] in texts for name in own)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1]
