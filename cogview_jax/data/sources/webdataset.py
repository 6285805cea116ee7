"""Reads tars of images with captions, as webdataset has them: `data.source.kind = "webdataset"`."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.images import SUFFIXES, decode_image
from cogview_jax.data.record_index_writer import open_index
from cogview_jax.data.records import Record, clean_captions
from cogview_jax.data.sources.file_patterns import expanded, folder_of, is_pattern, matches
from cogview_jax.data.sources.source import Source, SourceConfig
from cogview_jax.data.sources.webdataset_samples import FIELDS, REPEATED, UNENDED, SampleScan
from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason
from cogview_jax.runtime.paths import path_problem, require_paths

#: Names of compressed tars, which cannot be indexed.
_COMPRESSED = tuple(f".{end}" for end in ("tgz", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"))


@dataclass(frozen=True, kw_only=True)
class WebDataset(SourceConfig):
    """The settings of tars of images with captions, such as img2dataset writes.

    A sample is what stands in a row under one name up to the first dot: `0017.jpg`, `0017.txt` and
    `0017.json`. Where each image lies is written to an index once, beside the tars or, where that
    cannot be, in the user's cache.

    Attributes:
        kind: "webdataset".
        path: the tars, uncompressed: a tar, a folder in and below which they lie, a pattern such as
            "set/*.tar", "set/{00000..00041}.tar", or several of all these with commas between them.
        image_key: the ending of the image in a sample, such as "jpg" or "left.png". If it is empty,
            the first entry is taken that has the ending of an image.
        caption_keys: where the captions stand: names of fields of the sample's .json, which hold a
            text or a list of texts, and "txt" for the text of its .txt. If it is empty, the whole
            .txt is the caption, and in a sample without one the field "caption".
        index: the folder for the index. If it is empty, the index lies beside the tars.
    """

    kind: Literal["webdataset"] = "webdataset"
    path: str = ""
    image_key: str = ""
    caption_keys: tuple[str, ...] = ()
    index: str = ""

    def __post_init__(self):
        super().__post_init__()
        require_paths(self, "path", "index")
        for part in expanded(self.path) if self.path else ():
            if problem := path_problem(part):
                raise SettingError(f"path = {self.path!r}: {problem}")

    def open(self) -> Source[Record]:
        """Opens the index and makes it first if needed; see `SourceConfig.open`."""
        if not self.path:
            raise InputError(
                "data.source.path is empty: name the tars, such as"
                " --config.data.source.path='my_set/*.tar'"
            )
        return WebDatasetSource(self)


class WebDatasetSource:
    """The samples with an image of some tars, in the order of the tars and of their entries."""

    def __init__(self, config: WebDataset):
        """Opens the index of the tars, or makes it.

        Raises:
            InputError: there is no tar, one of them is no tar or breaks off, or no record has a
                caption.
            SystemFault: the machine cannot read them.
        """
        self._config, given = config, f"path={config.path!r}: "
        patterns = expanded(config.path)
        self._ignored = Ignored()
        folders = [folder_of(path) for path in patterns]
        root = os.path.commonpath(folders)
        tars = list(dict.fromkeys(self._tars(patterns, given)))
        if not tars:
            raise InputError(f"{given}expected tars, there are none; {self._ignored}")
        scan = SampleScan(config.image_key, config.caption_keys)
        self._index = open_index(
            root,
            [os.path.relpath(tar, root) for tar in tars],
            scan,
            depends_on={
                "kind": config.kind,
                "path": [os.path.relpath(path, root) for path in patterns],
                "endings": SUFFIXES,
                **asdict(scan),
            },
            beside=folders[0],
            place=config.index,
            unit="tar",
        )
        self._ignored.update(self._index.ignored().reasons())
        self._check(given)

    def __len__(self) -> int:
        """The number of records, good and bad."""
        return len(self._index)

    def describe(self) -> str:
        """Returns one line: how many records there are, and what is not among them."""
        tars = len(self._index.files)
        texts = f", {self._index.counts['captioned']} with a caption"
        texts = texts if self._config.require_captions else ""
        parts = [f"{len(self)} records of {tars} tar{'s' if tars > 1 else ''}{texts}"]
        if repeated := self._index.counts[REPEATED]:
            parts.append(f"{repeated} keys come again later in their tar, as samples of their own")
        if unended := self._index.counts.get(UNENDED):
            such = self._index.notes[UNENDED]
            parts.append(f"{unended} tars have no end, so more may be missing (such as {such})")
        return "; ".join([*parts, str(self._ignored)])

    def key(self, i: int) -> str:
        """Returns the name of record `i`: TAR/KEY."""
        return self._index.key(i)

    def __getitem__(self, i: int) -> Record:
        """Reads record `i`.

        Raises:
            BadRecord: there is no caption, or the image or the captions cannot be read.
            InputError: the tar was changed since the source was opened.
            SystemFault: the machine cannot read it.
        """
        found = self._index[i]
        captions = self._clean(found.captions, found.key)
        image = decode_image(self._index.read(found), found.key, max_pixels=self._config.max_pixels)
        return Record(found.key, image, captions)

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of record `i`, whose tar is not opened; see `source.Captioned`."""
        found = self._index[i]
        return self._clean(found.captions, found.key)

    def _clean(self, captions: tuple[str, ...], key: str) -> tuple[str, ...]:
        return clean_captions(captions, key, required=self._config.require_captions)

    def _tars(self, patterns: list[str], given: str) -> Iterator[str]:
        missing = [path for path in patterns if not (is_pattern(path) or os.path.exists(path))]
        if missing:
            raise InputError(
                f"{given}{missing[0]} is not there"
                + f" (nor are {len(missing) - 1} others)" * (len(missing) > 1)
            )
        for path in patterns:
            if os.path.isdir(path):
                yield from self._below(path)
                continue
            for tar in matches(path) if is_pattern(path) else [path]:
                if tar.endswith(_COMPRESSED):
                    raise InputError(
                        f"{tar}: records can be found in an uncompressed tar only: unpack it, as"
                        " gunzip does with .tar.gz, and name what comes of it"
                    )
                yield tar

    def _below(self, folder: str) -> Iterator[str]:
        """Yields the tars in and below a folder, and counts other files.

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
                if name.endswith(".tar") and not name.startswith("."):
                    yield path
                else:
                    self._ignored.add(_ending(name), os.path.relpath(path, folder))

    def _check(self, given: str) -> None:
        index, config = self._index, self._config
        if not len(index):
            raise InputError(
                f"{given}no sample with an image in {len(index.files)} tars; {self._ignored}"
            )
        if config.require_captions and not index.counts["captioned"]:
            fields = index.notes.get(FIELDS)
            wanted = ", ".join(config.caption_keys) or '.txt, or "caption" in its .json'
            raise InputError(
                f"{given}{len(index)} images and no caption: expected {wanted} in each sample"
                + (f"; its .json has {fields} (data.source.caption_keys)" if fields else "")
                + f"; {self._ignored}"
            )


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed: {reason(error)}")


def _ending(name: str) -> str:
    """Why a file that is no tar is ignored."""
    if name.startswith("."):
        return "hidden"
    for ending in _COMPRESSED:
        if name.endswith(ending):
            return f"compressed tars ({ending}), which have to be unpacked"
    ending = os.path.splitext(name)[1]
    return f"of ending {ending}" if ending else "without an ending"
