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
from cogview_jax.data.sources.folder_listing import FolderListing, find_listing, listing_copy
from cogview_jax.data.sources.folder_scan import LISTING, LISTINGS, FolderScan, walk
from cogview_jax.data.sources.source import Source, SourceConfig, require_reachable
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
    `folder_index.open_scan`.

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
            raise InputError(f"path={str(path)!r}: expected a folder of images, there is none")
        self._caption_fields = caption_fields
        self._lines: FolderListing | tuple[()] = ()
        self._scan: FolderScan | None = None
        if remote:
            listed = listing_copy(self._root)
            listing = os.path.basename(listed)
        else:
            listing = listing or find_listing(self._root)
            listed = os.path.join(self._root, listing)
        self._listing = listing
        if listing and os.path.lexists(listed):
            self._lines = FolderListing(listed)
            if not len(self._lines):
                raise InputError(
                    f"path={str(path)!r}: expected {listing} with a line an image, it has no line"
                )
            wanted = require_captions and not self._caption
            check_columns(listed, self._lines.columns, caption_fields, required=wanted)
            return
        self._scan = open_scan(self._root)
        given, ignored = f"path={str(path)!r}: ", self._scan.ignored
        if caption_fields:
            raise InputError(
                f"{given}caption_fields {', '.join(caption_fields)} are those of a listing:"
                f" expected one of {', '.join(LISTINGS)}; {ignored}"
            )
        if not self._scan.images:
            raise InputError(
                f"{given}expected images ({', '.join(SUFFIXES)}) in it or below, or a {LISTING}"
                f" that lists them, and there is neither; {ignored}"
            )
        if require_captions and not self._caption and not self._scan.texts:
            raise InputError(
                f"{given}{len(self._scan.images)} images and no caption: expected a {LISTING} with"
                f" a line an image, or a NAME.txt beside each NAME.png; {ignored}"
            )

    def __len__(self) -> int:
        """Returns the number of records, good and bad."""
        return len(self._scan.images if self._scan else self._lines)

    def describe(self) -> str:
        """Returns one line: how many records there are, and which files are not among them.

        If there is a listing, this reads the folder too, which takes a while on a slow disk, unless
        the listing is so long that it has an index.
        """
        if self._scan:
            texts = f", {self._scan.texts} with a caption file" if self._required else ""
            texts = f", each captioned {self._caption!r}" if self._caption else texts
            return f"{len(self)} images{texts}; {self._scan.ignored}"
        lines = f"{len(self)} lines of {self._listing}"
        long = isinstance(self._lines, FolderListing) and not self._lines.in_memory
        if long or is_address(self._root):
            return lines
        listed, ignored = {self.key(i) for i in range(len(self))}, Ignored()
        unlisted, first = 0, ""
        for found in walk(self._root, ignored, self._listing):
            images = (os.path.join(found.folder, name) for name in found.images)
            if others := [image for image in images if image not in listed]:
                unlisted += len(others)
                first = min(filter(None, (first, others[0])))
        ignored.add(f"that {self._listing} does not list", first, unlisted)
        return f"{lines}; {ignored}"

    def key(self, i: int) -> str:
        """Returns the path of the image within the folder, or the line if it cannot be read."""
        try:
            return self._parsed(i)[0]
        except BadRecord as error:
            return error.key

    def __getitem__(self, i: int) -> Record:
        """Reads record `i`.

        Raises:
            BadRecord: the line is malformed, there is no caption, or the image is missing, cannot
                be read, or lies outside the folder.
            SystemFault: the machine cannot read it.
        """
        key, captions = self._captioned(i)
        data = read_listed(self._root, key, key, "" if self._scan else self._listing)
        return Record(key, decode_image(data, key, max_pixels=self._max_pixels), captions)

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of record `i`, whose image is not looked at; see `source.Captioned`."""
        return self._captioned(i)[1]

    def _captioned(self, i: int) -> tuple[str, tuple[str, ...]]:
        """Returns the path of record `i` and its captions."""
        key, texts = self._parsed(i)
        if self._caption:
            texts = [self._caption]
        elif self._scan:
            texts = self._beside(key)
        return key, clean_captions(texts, key, required=self._required)

    def _parsed(self, i: int) -> tuple[str, list[str]]:
        """Returns the path of record `i`, and its captions if a listing has them."""
        if isinstance(self._lines, FolderListing):
            return parse_line(
                *self._lines[i],
                self._listing,
                columns=self._lines.columns,
                caption_fields=self._caption_fields,
            )
        assert self._scan is not None  # what is not listed was scanned
        file = self._scan.images[i]
        if not is_unicode(file):
            raise BadRecord(file, NOT_UTF8)
        return file, []

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
