"""The contents of a large folder, which an index keeps on disk and not in memory."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cogview_jax.data.images import SUFFIXES
from cogview_jax.data.record_index import NO_PLACE, RecordIndex
from cogview_jax.data.record_index_writer import IndexPart, find_index, open_index
from cogview_jax.data.records import is_unicode, printable
from cogview_jax.data.sources.folder_scan import FolderScan, scan_folder, walk
from cogview_jax.data.sources.listing_files import LISTINGS

#: The paths of at most so many images are kept in memory; those of more are in an index.
IN_MEMORY = 100_000
#: Why an image with such a name cannot be read.
NOT_UTF8 = "the name of the file is not UTF-8"
#: A count of the index: images with a caption file. A note: the paths of listings, as JSON.
_TEXTS, _LISTINGS = "texts", "listings"
#: The one file of an index that is the folder itself.
_ITSELF = [""]


def open_scan(root: str) -> FolderScan:
    """The contents of a folder that has no listing itself, see `folder_scan.walk`.

    Of a large folder an index has them, so that a process keeps none of the paths in memory. It
    holds as long as no folder in it was changed, by its size and time of change: as soon as a file
    came, went or was renamed, all is listed anew.

    Raises:
        InputError: the folder cannot be listed, or its index can be written nowhere.
        SystemFault: the machine cannot read it.
    """
    depends_on = {"kind": "folder", "endings": SUFFIXES, "listings": LISTINGS}
    asked: dict[str, Any] = {"depends_on": depends_on, "beside": root}
    index = find_index(root, _ITSELF, **asked)
    if index is None:
        if small := scan_folder(root, most=IN_MEMORY):
            return small
        scan = PathScan()
        index = open_index(root, _ITSELF, scan, unit="folder", setting="XDG_CACHE_HOME", **asked)
    listings = json.loads(index.notes[_LISTINGS])
    return FolderScan(listings, IndexedPaths(index), index.counts[_TEXTS], index.ignored())


class IndexedPaths:
    """The paths of an index in their order; see `folder_scan.Paths`."""

    def __init__(self, index: RecordIndex):
        """The index is one that `PathScan` made."""
        self._index = index

    def __len__(self) -> int:
        """How many there are."""
        return len(self._index)

    def __getitem__(self, i: int) -> str:
        """Path number `i`; raises as `RecordIndex` does."""
        found = self._index[i]
        return found.captions[0] if found.captions else found.key


@dataclass(frozen=True)
class PathScan:
    """Adds the paths of all images in and below a folder to the part of an index, sorted.

    What is in memory meanwhile are the paths of the folders, and the names in one of them.
    """

    def __call__(self, path: str, part: IndexPart) -> None:
        """Scans the folder at `path`; raises as `walk` does."""
        found = part.findings
        listings: list[str] = []
        places: dict[str, tuple[int, int]] = {}
        with tempfile.TemporaryFile(dir=part.folder) as spool:
            for contents in walk(path, found.ignored):
                folder = contents.folder
                names = "\0".join(contents.images).encode(errors="surrogateescape")
                places[folder] = spool.tell(), len(names)
                spool.write(names)
                found.counts[_TEXTS] += contents.texts
                for name, stamp in contents.stamps.items():
                    part.watch(os.path.join(folder, name) if name else folder, stamp)
                if contents.listing:
                    listings.append(os.path.join(folder, contents.listing))

            found.notes[_LISTINGS] = json.dumps(sorted(listings))

            def images(folder: str) -> list[str]:
                begin, size = places[folder]
                spool.seek(begin)
                names = spool.read(size).decode(errors="surrogateescape")
                return names.split("\0") if names else []

            for image in _in_order(places, images):
                _add(part, image)


def _add(part: IndexPart, image: str) -> None:
    if not is_unicode(image):
        part.add_bad(image, NOT_UTF8)
        return
    # A key is one line; a name that is not is kept as it is beside it.
    exact = [] if printable(image) == image else [image]
    part.add(image, exact, 0, NO_PLACE)


def _in_order(folders: Iterable[str], images: Callable[[str], list[str]]) -> Iterator[str]:
    """Yields the paths of all images in the order of the paths.

    Args:
        folders: the path of every folder; that in which it lies is there, too.
        images: the names of the images of a folder.
    """
    below: dict[str, list[str]] = {}
    for folder in folders:
        if folder:
            parent, name = os.path.split(folder)
            below.setdefault(parent, []).append(name)

    def entries(folder: str) -> Iterator[str]:
        # With its slash the name of a folder has the place that the paths in it have.
        own = [*images(folder), *(f"{name}/" for name in below.get(folder, ()))]
        return iter([os.path.join(folder, name) for name in sorted(own)])

    stack = [entries("")]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif entry.endswith("/"):
            stack.append(entries(entry[:-1]))
        else:
            yield entry
