"""Reads Parquet files of images with captions: `data.source.kind = "parquet"`."""

from dataclasses import dataclass
from typing import Literal

from cogview_jax.data.record_index import NO_PLACE, IndexedRecord
from cogview_jax.data.records import Record
from cogview_jax.data.remote.reader import RemoteConfig, RemoteReader
from cogview_jax.data.sources.data_files import find_files, require_files
from cogview_jax.data.sources.source import Source, SourceConfig
from cogview_jax.data.sources.tables import TableSource, require_pyarrow
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Parquet(SourceConfig):
    """The settings of Parquet files of images with captions.

    Where each image lies is written to an index once, beside the files or, where that cannot be, in
    the user's cache. Images that are stored compressed, or by a dictionary, are decoded with their
    whole row group. This needs the extra [arrow].

    Attributes:
        kind: "parquet".
        path: the files: one, a folder in and below which they lie, a pattern such as
            "data/train-*.parquet", "{00000..00041}.parquet", or several of all these with commas
            between them; also addresses, see `WebDataset`.
        image_key: the column of images, which holds bytes, or a struct of bytes and path as Hugging
            Face writes it; the path is never opened. If it is empty, the first such struct is
            taken, otherwise the column of bytes.
        caption_keys: the columns of captions, which hold a text or a list of texts. If it is empty,
            the first there is of caption, captions, text, texts, txt, prompt, description.
        index: the folder for the index. If it is empty, the index lies beside the files.
        remote: how files at addresses are read.
    """

    kind: Literal["parquet"] = "parquet"
    path: str = ""
    image_key: str = ""
    caption_keys: tuple[str, ...] = ()
    index: str = ""
    remote: RemoteConfig = RemoteConfig()

    def __post_init__(self):
        super().__post_init__()
        require_files(self)

    def open(self) -> Source[Record]:
        """Opens the index and makes it first if needed; see `SourceConfig.open`."""
        if not self.path:
            raise InputError(
                "data.source.path is empty: name the Parquet files, such as"
                " --config.data.source.path='my_set/train-*.parquet'"
            )
        require_pyarrow(self.kind)
        return ParquetSource(self)


class ParquetSource(TableSource):
    """The rows of some Parquet files, in the order of the files and of their rows."""

    def __init__(self, config: Parquet):
        """Opens the index of the files, or makes it; raises as `TableSource` does."""
        # pyarrow is imported only here, since few sources need it.
        from cogview_jax.data.sources.parquet_rows import PackedRows
        from cogview_jax.data.sources.parquet_scan import ParquetScan

        files = find_files(config.path, "Parquet files", ".parquet")
        scan = ParquetScan(config.image_key, config.caption_keys)
        reader = RemoteReader(config.remote) if files.are_remote else None
        super().__init__(config, files, scan, "Parquet file", reader)
        self._packed = PackedRows(self._index, config.image_key)

    def describe(self) -> str:
        """Returns one line: how many records there are, and what is not among them."""
        from cogview_jax.data.sources.parquet_scan import PACKED, PACKED_FILES

        parts = [self._counted(self._unit)]
        if packed := self._index.counts.get(PACKED):
            parts.append(
                f"{counted(packed, 'image')} (in"
                f" {counted(self._index.counts[PACKED_FILES], 'file')}) are compressed or"
                " stored by a dictionary: each is decoded with its whole row group, which is slow"
                " in random order; uncompressed ones, as datasets writes them, are read directly"
            )
        return "; ".join([*parts, str(self._ignored)])

    def _image(self, found: IndexedRecord) -> bytes:
        return (self._packed if found.size == NO_PLACE else self._index).read(found)
