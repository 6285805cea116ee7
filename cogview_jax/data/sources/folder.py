"""Reads a folder of images with captions: `data.source.kind = "folder"`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.images import MAX_PIXELS, SUFFIXES, decode_image
from cogview_jax.data.records import BadRecord, Record, clean_captions, is_unicode
from cogview_jax.data.remote.addresses import is_address
from cogview_jax.data.remote.reader import RemoteConfig
from cogview_jax.data.sources.folder_entries import (
    check_columns,
    parse_line,
    read_listed,
    why_unreadable,
)
from cogview_jax.data.sources.folder_index import NOT_UTF8, open_scan
from cogview_jax.data.sources.folder_listing import FolderListing
from cogview_jax.data.sources.folder_scan import FolderScan, walk
from cogview_jax.data.sources.listing_files import LISTING, LISTINGS, find_listing, listing_copy
from cogview_jax.data.sources.source import Source, SourceConfig, require_reachable
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import read_regular, text_lines

#: A caption file may have at most so many bytes.
TEXT_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Folder(SourceConfig):
    """The settings of a folder of images; `FolderSource` says how captions are given.

    Attributes:
        kind: "folder".
        path: the folder; also its address, if it has a listing. Images that are read there are not
            kept, and each is a file: tars are faster.
        caption: the caption of every image. If it is empty, captions are read from files.
        caption_fields: the fields of a listing that hold captions, texts or lists of texts. If it
            is empty, it is the first there is of captions, caption, text, prompt.
        remote: how images at an address are read.
    """

    kind: Literal["folder"] = "folder"
    path: str = ""
    caption: str = ""
    caption_fields: tuple[str, ...] = ()
    remote: RemoteConfig = RemoteConfig()

    def __post_init__(self):
        super().__post_init__()
        require_reachable(self, "path")

    def open(self) -> Source[Record]:
        """Lists the folder; see `SourceConfig.open`."""
        if not self.path:
            raise InputError(
                "data.source.path is empty: name the folder of images, such as"
                " --config.data.source.path=my_images"
            )
        return FolderSource(
            self.path,
            require_captions=self.require_captions,
            max_pixels=self.max_pixels,
            caption=self.caption,
            caption_fields=self.caption_fields,
            requests=self.remote.requests,
        )


@dataclass(frozen=True)
class _Place:
    """Where the image of a record is: its path, that within the folder of its listing, the path of
    the listing, and the texts that this has; without a listing both are empty."""

    key: str
    file: str
    listing: str
    texts: list[str]


class FolderSource:
    """The images of a folder, in one of two forms.

    With a `captions.jsonl` directly in the folder, its lines are the records, in their order:
    `{"file": "a/1.png", "caption": "a cat"}`, or `"captions": [...]` for several, or `"prompt"` as
    in the samples.jsonl that `sample` writes. Images that it does not list are no part of the data.
    So are those of a `metadata.jsonl` or `metadata.csv` of Hugging Face's imagefolder, with the
    columns file_name and text, caption or captions. A file is a path within the folder. An absolute
    path, one with "..", and one that a link leads out of the folder are bad records, so that a
    listing opens only files in the folder.

    Without a listing, every image in the folder and below it is a record, in the order of the
    paths, and each line of `1.txt` is a caption of `1.png` beside it. Linked subfolders count (see
    `folder_scan.walk`). The paths of more than 100,000 images are kept in an index, see
    `folder_index.open_scan`. A sub folder that has a listing, as `train/metadata.jsonl`, is read by
    it, as above: files are paths within the sub folder, which they cannot leave. Its records come
    before all others, listing by listing in the order of their paths.

    A listing speaks for its folder and for all below: of two, one below the other, only the upper
    one is read.

    Making the list reads no image and no caption, so it is quick and cannot fail on a bad record.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        require_captions: bool = True,
        max_pixels: int = MAX_PIXELS,
        caption: str = "",
        caption_fields: tuple[str, ...] = (),
        listing: str = "",
        requests: int = 1,
    ):
        """Lists the folder.

        Args:
            path: the folder, or its address.
            require_captions: if it is False, images without a caption are records too. An image
                tokenizer trains on those.
            max_pixels: an image with more pixels is a bad record.
            caption: the caption of every image. If it is given, captions in files are not read.
            caption_fields: the fields of a listing that hold captions, if not the usual ones.
            listing: the name of the file that is taken as the listing, if the folder has one. If it
                is empty, it is the first there is of `LISTINGS`.
            requests: images of an address that are read at a time.

        Raises:
            InputError: there is no such folder, or it holds no image or no caption.
            SystemFault: the machine cannot read it.
        """
        self._root, self._required, self._max_pixels = os.fspath(path), require_captions, max_pixels
        self._caption = caption.strip()
        remote = is_address(self._root)
        #: See `source.readers_of`.
        self.readers = requests if remote else 1
        if not remote and not os.path.isdir(self._root):
            there = "this is a file" if os.path.isfile(self._root) else "there is none"
            raise InputError(f"path={str(path)!r}: expected a folder of images, {there}")
        self._caption_fields = caption_fields
        self._scan: FolderScan | None = None
        folder, listings = self._root, [listing or find_listing(self._root)] if not remote else []
        if remote:
            folder, *listings = os.path.split(listing_copy(self._root))
        elif not listings[0] or not os.path.lexists(os.path.join(self._root, listings[0])):
            self._scan = open_scan(self._root)
            listings = self._scan.listings
        self._lines = FolderListing(folder, listings)
        wanted = require_captions and not self._caption
        for number, name in enumerate(listings):
            columns = self._lines.columns(number)
            check_columns(os.path.join(folder, name), columns, caption_fields, required=wanted)
        self._check(f"path={str(path)!r}: ", wanted)

    def _check(self, given: str, wanted: bool) -> None:
        """InputError unless there are records, with captions where these are `wanted`."""
        lines, scan = len(self._lines), self._scan
        if scan is None:
            if not lines:
                listing = self._lines.listings[0]
                raise InputError(f"{given}expected {listing} with a line an image, it has no line")
            return
        if self._caption_fields and not scan.listings:
            raise InputError(
                f"{given}caption_fields {', '.join(self._caption_fields)} are those of a listing:"
                f" expected one of {', '.join(LISTINGS)}; {scan.ignored}"
            )
        if not len(self):
            raise InputError(
                f"{given}expected images ({', '.join(SUFFIXES)}) in it or below, or a {LISTING}"
                f" that lists them, and there is neither; {scan.ignored}"
            )
        if wanted and not lines and not scan.texts:
            raise InputError(
                f"{given}{counted(len(self), 'image')} and no caption: expected a {LISTING} with a"
                f" line an image, or a NAME.txt beside each NAME.png; {scan.ignored}"
            )

    def __len__(self) -> int:
        """Returns the number of records, good and bad."""
        return len(self._lines) + (len(self._scan.images) if self._scan else 0)

    def describe(self) -> str:
        """Returns one line: how many records there are, and which files are not among them.

        If there is a listing, this reads the folder too, which takes a while on a slow disk, unless
        the listings are so long that they have an index.
        """
        listings, parts = self._lines.listings, []
        if listings:
            more = f"{counted(len(listings), 'listing')}, such as {listings[0]}"
            what = listings[0] if len(listings) == 1 else more
            parts = [f"{counted(len(self._lines), 'line')} of {what}"]
        if self._scan and (self._scan.images or not parts):
            texts = f", {self._scan.texts} with a caption file" if self._required else ""
            texts = f", each captioned {self._caption!r}" if self._caption else texts
            parts.append(f"{counted(len(self._scan.images), 'image')}{texts}")
        ignored = Ignored()
        if self._scan:
            ignored.update(self._scan.ignored.reasons())
        elif not self._lines.in_memory or is_address(self._root):
            return parts[0]
        if self._lines.in_memory:
            self._count_unlisted(ignored)
        return f"{', '.join(parts)}; {ignored}"

    def _count_unlisted(self, ignored: Ignored) -> None:
        """Counts the files in folders with a listing that are not listed there."""
        listed = {self.key(i) for i in range(len(self._lines))}
        for listing in self._lines.listings:
            unlisted, first = 0, ""
            for found in walk(self._root, ignored, listing):
                images = (os.path.join(found.folder, name) for name in found.images)
                if others := [image for image in images if image not in listed]:
                    unlisted += len(others)
                    first = min(filter(None, (first, others[0])))
            many = len(self._lines.listings) > 1
            what = "their listings do" if many else f"{listing} does"
            ignored.add(f"that {what} not list", first, unlisted)

    def key(self, i: int) -> str:
        """Returns the path of the image within the folder, or the line if it cannot be read."""
        try:
            return self._place(i).key
        except BadRecord as error:
            return error.key

    def __getitem__(self, i: int) -> Record:
        """Reads record `i`.

        Raises:
            BadRecord: the line is malformed, there is no caption, or the image is missing, cannot
                be read, or lies outside the folder.
            SystemFault: the machine cannot read it.
        """
        place, captions = self._captioned(i)
        folder = os.path.dirname(place.listing)
        root = os.path.join(self._root, folder) if folder else self._root
        data = read_listed(root, place.file, place.key, place.listing)
        return Record(
            place.key, decode_image(data, place.key, max_pixels=self._max_pixels), captions
        )

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of record `i`, whose image is not looked at; see `source.Captioned`."""
        return self._captioned(i)[1]

    def _captioned(self, i: int) -> tuple["_Place", tuple[str, ...]]:
        """Returns the place of record `i` and its captions."""
        place = self._place(i)
        texts = place.texts
        if self._caption:
            texts = [self._caption]
        elif not place.listing:
            texts = self._beside(place.key)
        return place, clean_captions(texts, place.key, required=self._required)

    def _place(self, i: int) -> "_Place":
        """Returns the place of record `i`, and its captions if a listing has them."""
        if i < len(self._lines):
            line = self._lines[i]
            file, texts = parse_line(
                line.number,
                line.line,
                line.listing,
                columns=line.columns,
                caption_fields=self._caption_fields,
            )
            key = os.path.join(os.path.dirname(line.listing), file)
            return _Place(key, file, line.listing, texts)
        assert self._scan is not None  # what is not listed was scanned
        file = self._scan.images[i - len(self._lines)]
        if not is_unicode(file):
            raise BadRecord(file, NOT_UTF8)
        return _Place(file, file, "", [])

    def _beside(self, file: str) -> list[str]:
        """Returns the lines of the text file beside an image."""
        path = os.path.splitext(os.path.join(self._root, file))[0] + ".txt"
        try:
            data = retried(lambda: read_regular(path, TEXT_LIMIT), path)
        except FileNotFoundError as error:
            if not self._required:
                return []
            raise BadRecord(file, why_unreadable("caption", path, error)) from None
        except (InputError, OSError) as error:
            raise BadRecord(file, why_unreadable("caption", path, error)) from None
        try:
            return text_lines(data)
        except ValueError:
            raise BadRecord(file, f"caption file {os.path.basename(path)} is not UTF-8") from None
