"""Finds the images and caption files in and below a folder, and counts all other files."""

import contextlib
import errno
import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.images import SUFFIXES
from cogview_jax.data.record_index import ABSENT, Stamp, stamp, stamp_of
from cogview_jax.data.record_index_writer import BESIDE
from cogview_jax.data.sources.listing_files import LISTINGS, find_listing
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError


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
        listings: paths of the listings of sub folders within the folder, sorted.
        images: paths of the images in folders without one, sorted, with slashes.
        texts: how many of these images have a file with the same name and the ending .txt.
        ignored: all other files, but for those in and below folders with a listing.
    """

    listings: list[str]
    images: Paths
    texts: int
    ignored: Ignored


@dataclass(frozen=True)
class FolderContents:
    """The contents of one folder, or its listing.

    Attributes:
        folder: its path within that which is scanned; empty for that one itself.
        listing: the name of its listing. Where there is one, nothing else in it is looked at.
        images: the names of its images, sorted.
        texts: how many of them have a file with the same name and the ending .txt.
        stamps: tell of the folder, as "", and of files that might be a listing, by their names,
            that they were changed afterwards; of a folder that cannot be listed, that it can be.
    """

    folder: str
    listing: str
    images: list[str]
    texts: int
    stamps: dict[str, Stamp]


def scan_folder(root: str, most: int | None = None) -> FolderScan | None:
    """Lists a folder and all folders below it, see `walk`; None for more than `most` images."""
    listings: list[str] = []
    images: list[str] = []
    texts, ignored = 0, Ignored()
    for found in walk(root, ignored):
        listings += [os.path.join(found.folder, found.listing)] * bool(found.listing)
        images += [os.path.join(found.folder, name) for name in found.images]
        texts += found.texts
        if most is not None and len(images) > most:
            return None
    return FolderScan(sorted(listings), sorted(images), texts, ignored)


def walk(root: str, ignored: Ignored, listing: str = "") -> Iterator[FolderContents]:
    """Yields the contents of a folder and of all folders below it. No image is opened.

    A file is an image if it has the ending of one and no leading dot: macOS leaves "._1.png" beside
    "1.png". Links to folders are followed, wherever they lead, because only the maker of the folder
    can have made them. Each real folder is listed once, under its own name rather than a link's, so
    that links in a circle end.

    A sub folder with a listing, see `find_listing`, is yielded with it, and neither it nor what is
    below is listed.

    Args:
        root: the folder.
        ignored: where all other files are counted.
        listing: the path within the root of a listing. If it is given, only its folder is walked,
            with all below, and other listings are ignored.

    Raises:
        InputError: the folder itself cannot be listed.
        SystemFault: the machine cannot list one of the folders.
    """
    return _Walk(root, ignored, listing).contents()


class _Walk:
    """A walk through a folder; see `walk`."""

    def __init__(self, root: str, ignored: Ignored, listing: str):
        self._root, self._ignored, self._listing = root, ignored, listing
        #: Real folders that were listed, and those that have a listing.
        self._listed: set[str] = set()
        self._with_listing: set[str] = set()
        self._links: list[str] = []

    def contents(self) -> Iterator[FolderContents]:
        """The contents of each folder: real ones first, then those that links lead to."""
        links = [os.path.dirname(self._listing)]
        while links:
            self._links = []
            for link in links:
                yield from self._tree(link)
            links = sorted(self._links)

    def _tree(self, top: str) -> Iterator[FolderContents]:
        """Yields each folder from `top` on that was not yet listed; notes the links in it."""
        stack = [top]
        while stack:
            folder = stack.pop()
            path = os.path.join(self._root, folder) if folder else self._root
            real = os.path.realpath(path)
            if real in self._listed or self._is_below_listing(real):
                self._ignored.add("linked to what is there already", folder)
                continue
            self._listed.add(real)
            try:
                found = faults.retried(functools.partial(_listed, path), path)
            except OSError as error:
                why = faults.reason(error)
                if not folder:
                    raise InputError(f"{self._root}: cannot be listed: {why}") from None
                self._ignored.add(f"not to be listed: {why}", folder)
                # Other rights change no time of the folder, but then what is in it can be reached.
                yield FolderContents(folder, "", [], 0, {os.curdir: ABSENT})
                continue
            stamps = {"": found.stamp} | dict.fromkeys(found.broken, ABSENT)
            if folder and not self._listing and not {*found.files}.isdisjoint(LISTINGS):
                stamps |= _stamps(path, found.files)
                if listing := find_listing(path, below=True):
                    self._with_listing.add(real)
                    yield FolderContents(folder, listing, [], 0, stamps)
                    continue
            images, texts = self._sorted(folder, found.files)
            yield FolderContents(folder, "", images, texts, stamps)
            self._links += [os.path.join(folder, name) for name in found.linked]
            stack += [os.path.join(folder, name) for name in found.folders]

    def _is_below_listing(self, real: str) -> bool:
        """Whether a real folder lies below one that has a listing."""
        if not self._with_listing:
            return False
        parents = itertools.accumulate(real.split(os.sep), "{}/{}".format)
        return not self._with_listing.isdisjoint(parents)

    def _sorted(self, folder: str, files: list[str]) -> tuple[list[str], int]:
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
                self._ignored.add("hidden", path)
            elif path != self._listing:
                sub = bool(folder) and name in LISTINGS
                other = f"of ending {ending}" if ending else "without an ending"
                self._ignored.add(f"{name} of sub folders" if sub else other, path)
        return own, sum(name[: -len(_ending(name))] in texts for name in own)


@dataclass(frozen=True)
class _Listed:
    """The stamp of a folder, and the names of the files, folders and linked folders in it, and of
    those files that are links which lead nowhere, and may once lead to a folder."""

    stamp: Stamp
    files: list[str]
    folders: list[str]
    linked: list[str]
    broken: list[str]


def _listed(path: str) -> _Listed:
    found = _Listed(stamp(os.stat(path)), [], [], [], [])  # a change meanwhile is one after it
    with os.scandir(path) as entries:
        for entry in entries:
            if not _is_folder(entry):
                found.files.append(entry.name)
                if entry.is_symlink() and _may_be_folder(entry):
                    found.broken.append(entry.name)
            elif entry.is_symlink():
                found.linked.append(entry.name)
            elif entry.name != BESIDE:
                found.folders.append(entry.name)
    return found


def _stamps(folder: str, files: list[str]) -> dict[str, Stamp]:
    """The stamps of those of the files of a folder that might be its listing."""
    found = {}
    for name in {*files} & {*LISTINGS}:
        with contextlib.suppress(InputError):  # a link that leads nowhere
            found[name] = stamp_of(os.path.join(folder, name))
    return found


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.ENOTDIR):  # The link leads nowhere.
            return False
        raise


def _may_be_folder(link: os.DirEntry) -> bool:
    """Whether a link leads nowhere, such as to a disk that is not there, and is not called as an
    image or a text is."""
    return _ending(link.name).lower() not in (*SUFFIXES, ".txt") and not os.path.exists(link.path)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1]
