"""Reads COCO's captions and its folder of images: `data.source.kind = "coco"`."""

import glob
import json
import os
from dataclasses import dataclass
from typing import Literal

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.record_index import CAPTIONED, NO_PLACE, IndexedRecord
from cogview_jax.data.record_index_writer import IndexPart, open_index
from cogview_jax.data.records import BadRecord, Record, clean_captions, printable
from cogview_jax.data.remote.addresses import is_address
from cogview_jax.data.remote.copies import local_copy
from cogview_jax.data.remote.reader import RemoteConfig
from cogview_jax.data.sources.folder_entries import check_name, read_listed
from cogview_jax.data.sources.indexed_source import IndexedSource
from cogview_jax.data.sources.source import Source, SourceConfig, require_reachable
from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import read_json
from cogview_jax.runtime.paths import require_paths

#: How the file of captions of a set is called, as "captions_train2017.json".
_PREFIX = "captions_"
#: The most bytes of such a file; that of COCO's training set has 92 MB.
_LIMIT = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Coco(SourceConfig):
    """The settings of images with captions as COCO has them; an image has five captions there.

    Attributes:
        kind: "coco".
        path: the file captions_NAME.json, or the folder that has it in `annotations`; also the
            address of the file.
        image_dir: the folder of images. If it is empty, it is NAME beside the file or beside
            `annotations`, or in `images` there. It may be an address, and has to be named if `path`
            is one.
        index: the folder for the index of captions. If it is empty, it lies beside the file.
        remote: how images at an address are read; they are not kept.
    """

    kind: Literal["coco"] = "coco"
    path: str = ""
    image_dir: str = ""
    index: str = ""
    remote: RemoteConfig = RemoteConfig()

    def __post_init__(self):
        super().__post_init__()
        require_reachable(self, "path", "image_dir")
        require_paths(self, "index")
        if is_address(self.path) and not self.image_dir:
            raise SettingError(
                "image_dir is empty: name the folder of the images, or its address, as path is one"
            )

    def open(self) -> Source[Record]:
        """Opens the index and makes it first if needed; see `SourceConfig.open`."""
        if not self.path:
            raise InputError(
                "data.source.path is empty: name a file of captions, such as"
                " --config.data.source.path=coco/annotations/captions_train2017.json"
            )
        return CocoSource(self)


class CocoSource(IndexedSource):
    """The images that a file of captions lists, in its order."""

    def __init__(self, config: Coco):
        """Opens the index of the captions, or makes it.

        Raises:
            InputError: there is no such file or folder, the file is damaged, or lists nothing.
            SystemFault: the machine cannot read it.
        """
        path = _captions_file(config.path)
        self._images = config.image_dir or _image_folder(path)
        remote = is_address(self._images)
        if not remote and not os.path.isdir(self._images):
            raise InputError(f"image_dir={self._images!r}: expected a folder of images")
        folder, self._file = os.path.split(os.path.abspath(path))
        index = open_index(
            folder,
            [self._file],
            CocoScan(),
            # The number is that of the rules, which have changed once.
            depends_on={"kind": config.kind, "file": self._file, "rules": 2},
            beside=folder,
            place=config.index,
        )
        super().__init__(config, index, Ignored())
        self.readers = config.remote.requests if remote else 1
        if not len(index):
            raise InputError(f"{path}: lists no image")
        self._check_usable(f"{path}: ")
        if config.require_captions and not index.counts[CAPTIONED]:
            raise InputError(f"{path}: {counted(len(index), 'image')} and no caption")

    def describe(self) -> str:
        """Returns one line: how many records there are, and where their images are."""
        return f"{self._counted('file')}, images in {self._images}; {self._ignored}"

    def _image(self, found: IndexedRecord) -> bytes:
        name = found.key.removeprefix(f"{printable(self._file)}/")
        return read_listed(self._images, name, found.key, self._file)


@dataclass(frozen=True)
class CocoScan:
    """Adds the images that a file of captions lists to the part of an index."""

    def __call__(self, path: str, part: IndexPart) -> None:
        """Scans the file at `path`, which is in memory meanwhile.

        Raises:
            InputError: it is damaged, no file of captions, or two images have one id.
            SystemFault: the machine cannot read it.
        """
        try:
            found = retried(lambda: read_json(path, limit=_LIMIT), path)
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None
        images, notes = _lists(path, found)
        texts: dict[object, list] = {}
        for each in notes:
            number = each.get("image_id") if isinstance(each, dict) else None
            if isinstance(number, int | str) and "caption" in each:
                texts.setdefault(number, []).append(each["caption"])
            else:
                part.findings.ignored.add("annotations without a caption", json.dumps(each)[:80])
        names: dict[int | str, str] = {}
        for row, each in enumerate(images):
            number, name = _identity(each)
            if number is None or name is None:
                part.add_bad(f"images/{row}", 'expected "id" and "file_name" of an image')
                continue
            if number in names:
                if names[number] != name:
                    raise InputError(
                        f"{path}: two images have the id {number!r}: {names[number]!r} and {name!r}"
                    )
                part.findings.ignored.add("images that are listed again", name)
                continue
            names[number] = name
            _add(part, row, name, texts.get(number, []), os.path.basename(path))


def _lists(path: str, found: object) -> tuple[list, list]:
    """The images and the annotations of a file of captions."""
    if isinstance(found, dict):
        images, notes = found.get("images"), found.get("annotations")
        if isinstance(images, list) and isinstance(notes, list):
            return images, notes
    raise InputError(f'{path}: expected COCO\'s captions: lists "images" and "annotations"')


def _identity(image: object) -> tuple[int | str | None, str | None]:
    """The id and the file of an image; None for what it does not have."""
    if not isinstance(image, dict):
        return None, None
    number, name = image.get("id"), image.get("file_name")
    return (
        number if isinstance(number, int | str) else None,
        name if isinstance(name, str) else None,
    )


def _add(part: IndexPart, row: int, name: str, texts: list, file: str) -> None:
    try:
        check_name(name, f"images/{row}", '"file_name"', file)
        if printable(name) != name:
            raise BadRecord(name, '"file_name" holds ends of lines')
        if not all(isinstance(text, str) for text in texts):
            raise BadRecord(name, '"caption" must be a text')
        captions = clean_captions(texts, name, required=False)
    except BadRecord as error:
        part.add_bad(error.key, error.reason)
    else:
        part.add(name, captions, row, NO_PLACE)


def _captions_file(path: str) -> str:
    """The file of captions that a path names; of one at an address a copy."""
    if is_address(path):
        return local_copy(path, _LIMIT)
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise InputError(f"path={path!r}: expected a file captions_NAME.json, there is none")
        return path
    places = (os.path.join(path, "annotations"), path)
    patterns = [os.path.join(glob.escape(place), f"{_PREFIX}*.json") for place in places]
    found = sorted(each for pattern in patterns for each in glob.glob(pattern))
    if len(found) == 1:
        return found[0]
    choices = f"choices are {', '.join(found)}" if found else "there is none"
    raise InputError(f"path={path!r}: expected one file annotations/captions_NAME.json: {choices}")


def _image_folder(path: str) -> str:
    """The folder of the images that a file of captions lists."""
    folder, file = os.path.split(os.path.abspath(path))
    name = file.removeprefix(_PREFIX).removesuffix(".json")
    roots = (os.path.dirname(folder), folder)
    places = [os.path.join(root, *way) for root in roots for way in ((name,), ("images", name))]
    for place in places:
        if os.path.isdir(place):
            return place
    raise InputError(
        f"{path}: no folder {places[0]} of its images: name it as data.source.image_dir"
    )
