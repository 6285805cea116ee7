"""A source whose records an index finds in files of others."""

from dataclasses import asdict
from typing import Any

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.images import decode_image
from cogview_jax.data.record_index import BAD, CAPTIONED, IndexedRecord, RecordIndex
from cogview_jax.data.record_index_writer import open_index
from cogview_jax.data.records import Record, clean_captions
from cogview_jax.data.remote.reader import RemoteReader
from cogview_jax.data.sources.data_files import DataFiles
from cogview_jax.data.sources.source import SourceConfig
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError


def index_of(
    config: Any,
    files: DataFiles,
    scan: Any,
    unit: str,
    reader: RemoteReader | None = None,
    **depends_on: Any,
) -> RecordIndex:
    """Opens the index of a source's files, or makes it; see `open_index`.

    Args:
        config: the settings: kind, index and those of every source.
        files: what the settings name.
        scan: finds the records of one file; a dataclass.
        unit: what a file is called in messages.
        reader: reads files on another machine.
        depends_on: what the index depends on beside all these.
    """
    return open_index(
        files.root,
        files.names,
        scan,
        depends_on={"kind": config.kind, "path": files.patterns, **depends_on, **asdict(scan)},
        beside=files.beside,
        place=config.index,
        unit=unit,
        reader=reader,
    )


class IndexedSource:
    """The records of an index, in its order; each kind says where their images are."""

    def __init__(
        self,
        config: SourceConfig,
        index: RecordIndex,
        ignored: Ignored,
        reader: RemoteReader | None = None,
    ):
        """A source of all records of an index.

        Args:
            config: the settings of the source.
            index: finds the records.
            ignored: the files that hold none of them; entries that the index ignores are added.
            reader: reads their images where they lie on another machine.
        """
        self._config, self._index, self._ignored = config, index, ignored
        self._ignored.update(index.ignored().reasons())
        #: See `source.readers_of`.
        self.readers = reader.requests if reader else 1

    def __len__(self) -> int:
        """The number of records, good and bad."""
        return len(self._index)

    def key(self, i: int) -> str:
        """Returns the name of record `i`: FILE/KEY."""
        return self._index.key(i)

    def __getitem__(self, i: int) -> Record:
        """Reads record `i`.

        Raises:
            BadRecord: there is no caption, or the image or the captions cannot be read.
            InputError: its file was changed since the source was opened.
            SystemFault: the machine cannot read it.
        """
        found = self._index[i]
        captions = self._clean(found)
        image = decode_image(self._image(found), found.key, max_pixels=self._config.max_pixels)
        return Record(found.key, image, captions)

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of record `i`, whose file is not opened; see `source.Captioned`."""
        return self._clean(self._index[i])

    def _image(self, found: IndexedRecord) -> bytes:
        """The encoded image of a record."""
        return self._index.read(found)

    def _clean(self, found: IndexedRecord) -> tuple[str, ...]:
        required = self._config.require_captions
        return clean_captions(found.captions, found.key, required=required)

    def _check_usable(self, given: str) -> None:
        """Refuses an index all of whose records were found to be bad, and names the first."""
        if self._index.counts[BAD] == len(self):
            such = self._index.notes[BAD]
            raise InputError(f"{given}none of {len(self)} records can be used, such as {such}")

    def _counted(self, unit: str) -> str:
        """How many records there are in how many files, called by `unit`."""
        files = len(self._index.files)
        texts = f", {self._index.counts[CAPTIONED]} with a caption"
        texts = texts if self._config.require_captions else ""
        return f"{counted(len(self), 'record')} of {counted(files, unit)}{texts}"
