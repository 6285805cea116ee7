"""Reads LMDBs of encoded images: `data.source.kind = "lmdb"`."""

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Literal

from cogview_jax.data.record_index import CAPTIONED, NO_PLACE, IndexedRecord
from cogview_jax.data.records import BadRecord, Record, printable
from cogview_jax.data.sources.data_files import DataFiles, find_files, require_files
from cogview_jax.data.sources.indexed_source import IndexedSource, index_of
from cogview_jax.data.sources.source import Source, SourceConfig, require_local
from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Lmdb(SourceConfig):
    """The settings of LMDBs whose values are encoded images, as they are in files.

    A set of two LMDBs that Chinese-CLIP wrote, `imgs` and `pairs` in one folder, is read as it is.
    Rows of tokens, as the release of CogView trains on, hold no images and are refused. Which keys
    are images is written to an index once, beside the LMDBs or, where that cannot be, in the user's
    cache. This needs the extra [lmdb].

    Attributes:
        kind: "lmdb".
        path: the folder with data.mdb, or one in and below which such folders lie; or files of
            LMDBs, as the path of kind "webdataset" names such.
        image_key: the keys of images, with a `*` in the place of the record's name, such as
            "image-*" or "*.jpg". If it is empty, it is "image-*" if there is such a key, and else
            every key.
        caption_key: the keys of texts, such as "*.txt": UTF-8, or a JSON list of several. If it is
            empty and images are called image-*, it is the first there is of label-*, caption-* and
            text-*.
        index: the folder for the index. If it is empty, the index lies beside the LMDBs.
    """

    kind: Literal["lmdb"] = "lmdb"
    path: str = ""
    image_key: str = ""
    caption_key: str = ""
    index: str = ""

    def __post_init__(self):
        super().__post_init__()
        require_local(self, "path", "index")
        require_files(self)
        for name in ("image_key", "caption_key"):
            value = getattr(self, name)
            if value and value.count("*") != 1:
                raise SettingError(
                    f"{name} = {value!r}: expected keys with one * in the place of the record's"
                    " name, such as 'image-*'"
                )

    def open(self) -> Source[Record]:
        """Opens the index and makes it first if needed; see `SourceConfig.open`."""
        if not self.path:
            raise InputError(
                "data.source.path is empty: name the folder of an LMDB, such as"
                " --config.data.source.path=my_set.lmdb"
            )
        if importlib.util.find_spec("lmdb") is None:
            raise InputError(
                f"data.source.kind = {self.kind!r} needs lmdb: install it with"
                " `pip install 'cogview-jax[lmdb]'`"
            )
        # lmdb is imported only here, since few sources need it.
        from cogview_jax.data.sources.lmdb_scan import LmdbScan

        return LmdbSource(self, _files(self), LmdbScan(self.image_key, self.caption_key))


class LmdbSource(IndexedSource):
    """The images of some LMDBs, in the order of the files and of their keys."""

    def __init__(self, config: Lmdb, files: DataFiles, scan: Any):
        """Opens the index of the LMDBs, or makes it.

        Args:
            config: the settings.
            files: the LMDBs.
            scan: finds the images of one; a dataclass.

        Raises:
            InputError: an LMDB is damaged or holds no images, or no record can be used.
            SystemFault: the machine cannot read them.
        """
        index = index_of(config, files, scan, "LMDB")
        super().__init__(config, index, files.ignored)
        given = f"path={config.path!r}: "
        if not len(self):
            raise InputError(f"{given}no image; {self._ignored}")
        self._check_usable(given)
        if config.require_captions and not index.counts[CAPTIONED]:
            raise InputError(
                f"{given}{counted(len(self), 'image')} and no caption: expected keys of texts such"
                f" as label-* beside image-*, or data.source.caption_key; {self._ignored}"
            )
        self._image_key = config.image_key
        #: Open ones, by the number of their file, where the index does not know where values lie.
        self._lmdbs: dict[int, Any] = {}

    def describe(self) -> str:
        """Returns one line: how many records there are, and what is not among them."""
        return f"{self._counted('LMDB')}; {self._ignored}"

    def _image(self, found: IndexedRecord) -> bytes:
        from cogview_jax.data.sources.lmdb_scan import decoded_value

        path = self._index.path(found.file)
        value = self._index.read(found) if found.size != NO_PLACE else self._value(found)
        return decoded_value(path, value, found.key)

    def _value(self, found: IndexedRecord) -> bytes:
        """The value of a record of which it is not known where it lies in the file."""
        from cogview_jax.data.lmdb_file import opened
        from cogview_jax.data.sources.lmdb_scan import image_pattern

        self._index.require_unchanged(found.file)
        if found.file not in self._lmdbs:
            self._lmdbs[found.file] = opened(self._index.path(found.file))
        file = self._lmdbs[found.file]
        name = found.key.removeprefix(f"{printable(self._index.files[found.file])}/")
        value = file.get(image_pattern(file, self._image_key).key(name))
        if value is None:
            raise BadRecord(found.key, "there is no such key")
        return value


def _files(config: Lmdb) -> DataFiles:
    """The files of LMDBs. Of a set of images and pairs it is that of the images."""
    from cogview_jax.data.sources.lmdb_scan import DATA, IMAGES, PAIRS

    images, pairs = (os.path.join(config.path, name, DATA) for name in (IMAGES, PAIRS))
    if os.path.isfile(images) and os.path.isfile(pairs):
        files = find_files(images, "LMDBs", DATA)
        # Both lie within the root, so that the index sees when the pairs change.
        root, name = os.path.abspath(config.path), os.path.join(IMAGES, DATA)
        return DataFiles(root, [name], [name], root, files.ignored)
    reasons = {"lock.mdb": "for locking"}
    return find_files(config.path, "LMDBs (data.mdb in a folder)", DATA, reasons=reasons)
