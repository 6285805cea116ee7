"""Finds the images and caption files in and below a folder, and counts all other files."""

import errno
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.images import SUFFIXES
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError

LISTING = "captions.jsonl"
#: Files that may list the images of a folder; the last two are those of Hugging Face's imagefolder.
LISTINGS = (LISTING, "metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class FolderScan:
    """The contents of a folder.

    Attributes:
        images: paths of the images within the folder, sorted, with slashes.
        texts: how many of the images have a file with the same name and the ending .txt.
        ignored: all other files.
    """

    images: list[str]
    texts: int
    ignored: Ignored


def scan_folder(root: str, listing: str = LISTING) -> FolderScan:
    """Lists a folder and all folders below it. No file is opened.

    A file is an image if it has the ending of one and no leading dot: macOS leaves "._1.png" beside
    "1.png". Links to folders are followed, wherever they lead, because only the maker of the folder
    can have made them. Each real folder is listed once, under its own name rather than a link's, so
    that links in a circle end. The `listing` of the folder itself is not ignored.

    Raises:
        InputError: the folder itself cannot be listed.
        SystemFault: the machine cannot list one of the folders.
    """
    images: list[str] = []
    texts, ignored = 0, Ignored()
    listed: set[str] = set()
    links = [""]
    while links:
        found: list[str] = []
        for link in links:
            for folder in _tree(root, link, found, listed, ignored):
                texts += _sort(*folder, images, ignored, listing)
        links = sorted(found)
    return FolderScan(sorted(images), texts, ignored)


def _tree(
    root: str, top: str, links: list[str], listed: set[str], ignored: Ignored
) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder from `top` on that is not yet `listed`, and the names of its files."""
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
            files, folders, linked = faults.retried(functools.partial(_entries, path), path)
        except OSError as error:
            if not folder:
                raise InputError(f"{root}: cannot be listed: {faults.reason(error)}") from None
            ignored.add(f"folders that cannot be listed: {faults.reason(error)}", folder)
            continue
        yield folder, files
        links += [os.path.join(folder, name) for name in linked]
        stack += [os.path.join(folder, name) for name in folders]


def _entries(path: str) -> tuple[list[str], list[str], list[str]]:
    """Returns the names of the files, the folders and the linked folders in a folder."""
    files, folders, linked = [], [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if not _is_folder(entry):
                files.append(entry.name)
            elif entry.is_symlink():
                linked.append(entry.name)
            else:
                folders.append(entry.name)
    return files, folders, linked


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.ENOTDIR):  # The link leads nowhere.
            return False
        raise


def _sort(folder: str, files: list[str], images: list[str], ignored: Ignored, listing: str) -> int:
    """Adds the files of a folder to `images` or `ignored`; returns how many images have texts."""
    shown = [name for name in sorted(files) if not name.startswith(".")]
    own = [name for name in shown if _ending(name).lower() in SUFFIXES]
    stems = {name[: -len(_ending(name))] for name in own}
    images += [os.path.join(folder, name) for name in own]
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
    return sum(name[: -len(_ending(name))] in texts for name in own)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1]
