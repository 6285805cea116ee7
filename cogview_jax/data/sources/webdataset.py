"""Reads tars of images with captions, as webdataset has them: `data.source.kind = "webdataset"`."""

from dataclasses import dataclass
from typing import Literal

from cogview_jax.data.images import SUFFIXES
from cogview_jax.data.record_index import CAPTIONED
from cogview_jax.data.records import Record
from cogview_jax.data.remote.addresses import without_query
from cogview_jax.data.remote.reader import RemoteConfig, RemoteReader
from cogview_jax.data.sources.data_files import find_files, require_files
from cogview_jax.data.sources.indexed_source import IndexedSource, index_of
from cogview_jax.data.sources.source import Source, SourceConfig
from cogview_jax.data.sources.webdataset_samples import FIELDS, REPEATED, UNENDED, SampleScan
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError

#: Names of compressed tars, which cannot be indexed.
_COMPRESSED = tuple(f".{end}" for end in ("tgz", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"))


@dataclass(frozen=True, kw_only=True)
class WebDataset(SourceConfig):
    """The settings of tars of images with captions, such as img2dataset writes.

    A sample is what stands in a row under one name up to the first dot: `0017.jpg`, `0017.txt` and
    `0017.json`. Where each image lies is written to an index once, beside the tars or, where that
    cannot be, in the user's cache. Tars at addresses need the extra [remote].

    Attributes:
        kind: "webdataset".
        path: the tars, uncompressed: a tar, a folder in and below which they lie, a pattern such as
            "set/*.tar", "set/{00000..00041}.tar", or several of all these with commas between them.
            They may be addresses that begin with https://, gs:// or s3://; of https:// there are
            no folders and no patterns with signs such as *.
        image_key: the ending of the image in a sample, such as "jpg" or "left.png". If it is empty,
            the first entry is taken that has the ending of an image.
        caption_keys: where the captions stand: names of fields of the sample's .json, which hold a
            text or a list of texts, and "txt" for the text of its .txt. If it is empty, the whole
            .txt is the caption, and in a sample without one the field "caption".
        index: the folder for the index. If it is empty, the index lies beside the tars.
        remote: how tars at addresses are read.
    """

    kind: Literal["webdataset"] = "webdataset"
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
                "data.source.path is empty: name the tars, such as"
                " --config.data.source.path='my_set/*.tar'"
            )
        return WebDatasetSource(self)


class WebDatasetSource(IndexedSource):
    """The samples with an image of some tars, in the order of the tars and of their entries."""

    def __init__(self, config: WebDataset):
        """Opens the index of the tars, or makes it.

        Raises:
            InputError: there is no tar, one of them is no tar or breaks off, or no record has a
                caption.
            SystemFault: the machine cannot read them.
        """
        reasons = {
            end: f"compressed tars ({end}), which have to be unpacked" for end in _COMPRESSED
        }
        files = find_files(config.path, "tars", ".tar", reasons=reasons)
        for tar in files.paths:
            if without_query(tar).endswith(_COMPRESSED):
                raise InputError(
                    f"{tar}: records can be found in an uncompressed tar only: unpack it, as"
                    " gunzip does with .tar.gz, and name what comes of it"
                )
        scan = SampleScan(config.image_key, config.caption_keys)
        reader = RemoteReader(config.remote) if files.are_remote else None
        index = index_of(config, files, scan, "tar", reader, endings=SUFFIXES)
        super().__init__(config, index, files.ignored, reader)
        self._check(config)

    def describe(self) -> str:
        """Returns one line: how many records there are, and what is not among them."""
        parts = [self._counted("tar")]
        if repeated := self._index.counts[REPEATED]:
            parts.append(f"{repeated} keys come again later in their tar, as samples of their own")
        if unended := self._index.counts.get(UNENDED):
            such = self._index.notes[UNENDED]
            parts.append(f"{unended} tars have no end, so more may be missing (such as {such})")
        return "; ".join([*parts, str(self._ignored)])

    def _check(self, config: WebDataset) -> None:
        index, given = self._index, f"path={config.path!r}: "
        if not len(index):
            raise InputError(
                f"{given}no sample with an image in {counted(len(index.files), 'tar')};"
                f" {self._ignored}"
            )
        self._check_usable(given)
        if config.require_captions and not index.counts[CAPTIONED]:
            fields = index.notes.get(FIELDS)
            wanted = ", ".join(config.caption_keys) or '.txt, or "caption" in its .json'
            raise InputError(
                f"{given}{counted(len(index), 'image')} and no caption: expected {wanted} in each"
                " sample"
                + (f"; its .json has {fields} (data.source.caption_keys)" if fields else "")
                + f"; {self._ignored}"
            )
