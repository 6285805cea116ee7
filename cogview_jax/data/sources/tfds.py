"""Reads any prepared TensorFlow data set without TensorFlow: `data.source.kind = "tfds"`."""

from dataclasses import dataclass
from typing import Literal

from cogview_jax.data.records import Record
from cogview_jax.data.sources.source import Source, SourceConfig, require_local


@dataclass(frozen=True, kw_only=True)
class Tfds(SourceConfig):
    """The settings of a split of a prepared TensorFlow data set.

    Attributes:
        kind: "tfds".
        path: the `data_dir` of the data set. If it is empty, it is the usual one of TFDS.
        name: "name", "name/config" or "name/config:version".
        split: a split or a part of one, such as "train" or "train[:90%]".
        image_key: the feature that holds the image.
        caption_keys: the features that hold captions, which are texts or sequences of texts. A
            record gets the captions of all of them. A slash names a feature within another, as in
            "captions/text".
    """

    kind: Literal["tfds"] = "tfds"
    path: str = ""
    name: str = ""
    split: str = ""
    image_key: str = "image"
    caption_keys: tuple[str, ...] = ("captions/text",)

    def __post_init__(self):
        super().__post_init__()
        require_local(self, "path")

    def open(self) -> Source[Record]:
        """Opens the split; see `SourceConfig.open`."""
        # TFDS is imported only here, since it takes a second and many GPU images do not have it.
        from cogview_jax.data.sources import tfds_split

        return tfds_split.TfdsSource(
            tfds_split.find_builder(self.name, self.path),
            self.split,
            image_key=self.image_key,
            caption_keys=self.caption_keys,
            require_captions=self.require_captions,
            max_pixels=self.max_pixels,
        )
