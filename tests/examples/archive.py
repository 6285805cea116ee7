"""A source of records: a ZIP file of images that are named by what they show."""

import zipfile
from dataclasses import dataclass
from typing import Literal

from cogview_jax.data.images import decode_image
from cogview_jax.data.records import Record, clean_captions
from cogview_jax.data.sources.source import Source, SourceConfig
from cogview_jax.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Archive(SourceConfig):
    """The section `data.source` with `kind = "archive"`."""

    kind: Literal["archive"] = "archive"
    path: str = ""

    def open(self) -> Source[Record]:
        if not zipfile.is_zipfile(self.path):
            raise InputError(f"data.source.path = {self.path!r}: expected a ZIP file")
        return ArchiveSource(zipfile.ZipFile(self.path), self)


class ArchiveSource:
    def __init__(self, archive: zipfile.ZipFile, config: Archive):
        self._archive, self._config, self._names = archive, config, sorted(archive.namelist())

    def __len__(self) -> int:
        return len(self._names)

    def key(self, i: int) -> str:
        return self._names[i]

    def __getitem__(self, i: int) -> Record:
        key, config = self._names[i], self._config
        captions = clean_captions([key.rpartition(".")[0]], key, required=config.require_captions)
        image = decode_image(self._archive.read(key), key, max_pixels=config.max_pixels)
        return Record(key, image, captions)
