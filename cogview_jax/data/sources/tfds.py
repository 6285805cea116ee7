"""The kind `tfds`: any prepared TensorFlow data set, read without TensorFlow."""

from dataclasses import dataclass
from typing import Literal

from cogview_jax.data.records import Record
from cogview_jax.data.sources.source import Source, SourceConfig
from cogview_jax.runtime.paths import require_paths


@dataclass(frozen=True, kw_only=True)
class Tfds(SourceConfig):
    """A split of a prepared TensorFlow data set.

    Attributes:
        kind: "tfds".
        path: the `data_dir` of the data set; empty for TFDS's usual one.
        name: "name", "name/config" or "name/config:version".
        split: such as "train" or "train[:90%]".
        image_key: the feature that holds the image.
        caption_keys: the features that hold captions, texts or sequences of texts. A record gets
            the captions of all of them. A slash goes into a feature, as in "captions/text".
    """

    kind: Literal["tfds"] = "tfds"
    path: str = ""
    name: str = ""
    split: str = ""
    image_key: str = "image"
    caption_keys: tuple[str, ...] = ("captions/text",)

    def __post_init__(self):
        super().__post_init__()
        require_paths(self, "path")

    def open(self) -> Source[Record]:
        """Opens the split; see `SourceConfig.open`."""
        # TFDS takes a second to import and is absent from many GPU images: only its readers pay.
        from cogview_jax.data.sources import tfds_split

        return tfds_split.TfdsSource(
            tfds_split.find_builder(self.name, self.path),
            self.split,
            image_key=self.image_key,
            caption_keys=self.caption_keys,
            require_captions=self.require_captions,
            max_pixels=self.max_pixels,
        )
