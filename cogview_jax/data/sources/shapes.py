"""Reads the embedded drawings with captions in two languages: `data.source.kind = "shapes"`."""

import os
from dataclasses import dataclass
from typing import Literal

from cogview_jax.data.records import Record
from cogview_jax.data.sources.kind_hint import kind_hint
from cogview_jax.data.sources.source import Source, SourceConfig, require_local
from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError

CAPTION_KEYS = ("caption_en", "caption_zh")


@dataclass(frozen=True, kw_only=True)
class Shapes(SourceConfig):
    """The settings of the embedded drawings, which are made when the source is first opened.

    Attributes:
        kind: "shapes".
        path: the folder where the drawings are kept.
        split: "train", "held_out", or a part such as "train[:90%]".
        caption_keys: the captions of a record, "caption_en" or "caption_zh". If it is empty, a
            record has both.
        size: height and width of a drawing in pixels.
        train_count: the number of drawings in "train".
        held_out_count: the number of drawings in "held_out".
        seed: the seed of the random numbers from which the scenes are sampled.
    """

    kind: Literal["shapes"] = "shapes"
    path: str = ""
    split: str = "train"
    caption_keys: tuple[str, ...] = ()
    size: int = 64
    train_count: int = 10_000
    held_out_count: int = 500
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        require_local(self, "path")
        require_range(self, "size", at_least=16, at_most=2**14)
        require_range(self, "train_count", "held_out_count", at_least=1)
        require_range(self, "seed", at_least=0, below=2**32)

    def open(self) -> Source[Record]:
        """Opens a split; see `SourceConfig.open`."""
        # TFDS is imported only here, since it takes a second and many GPU images do not have it.
        from cogview_jax.data.sources import captioned_shapes, tfds_split

        there = os.path.join(self.path, captioned_shapes.NAME)
        if self.path and not os.path.isdir(there) and kind_hint(self.path, self.kind):
            raise InputError(
                f"path={self.path!r}: kind {self.kind!r} reads no data but makes its own drawings:"
                " expected a folder for them alone"
            )
        directory = captioned_shapes.prepare(
            self.path,
            size=self.size,
            train_count=self.train_count,
            held_out_count=self.held_out_count,
            seed=self.seed,
        )
        return tfds_split.TfdsSource(
            tfds_split.open_builder(directory),
            self.split,
            caption_keys=self.caption_keys or CAPTION_KEYS,
            require_captions=self.require_captions,
            max_pixels=self.max_pixels,
        )
