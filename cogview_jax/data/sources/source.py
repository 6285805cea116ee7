"""What a source of records is, and how a config names one."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Protocol, TypeVar

from cogview_jax.data.images import MAX_PIXELS, MOST_PIXELS
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import require_paths

KINDS = ("shapes", "tfds", "folder")
SHAPES_CAPTIONS = ("caption_en", "caption_zh")
Item = TypeVar("Item", covariant=True)


class Source(Protocol[Item]):
    """Records by index, in an order that never changes; safe to read from many threads."""

    def __len__(self) -> int:
        """The number of records, good and bad."""

    def key(self, i: int) -> str:
        """The name of record `i`, without reading it."""

    def __getitem__(self, i: int) -> Item:
        """Reads record `i`.

        Raises BadRecord if it cannot be used, SystemFault if the machine cannot read it.
        """


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where captioned images come from.

    Attributes:
        kind: "shapes" (the embedded drawings), "tfds" (a prepared TensorFlow data set, read
            without TensorFlow) or "folder".
        path: folder: the folder. tfds: its data_dir, empty for the usual one. shapes: where the
            drawn set is kept.
        name: tfds: "name", "name/config" or "name/config:version".
        split: tfds and shapes: such as "train" or "train[:90%]".
        image_key: tfds: the feature that holds the image.
        caption_keys: tfds: the features that hold captions, all of which a record gets: texts or
            sequences of them; a slash goes into a feature, as in "captions/text". shapes: both
            languages if empty.
        require_captions: a record without a caption is bad. An image tokenizer needs none.
        max_pixels: an image of more is bad; it is not decoded, so this bounds the memory of one.
        size: shapes: the side of a drawing in pixels.
        train_count: shapes: drawings in "train".
        held_out_count: shapes: drawings in "held_out".
        seed: shapes: what they are drawn from.
    """

    kind: str
    path: str = ""
    name: str = ""
    split: str = ""
    image_key: str = "image"
    caption_keys: tuple[str, ...] = ()
    require_captions: bool = True
    max_pixels: int = MAX_PIXELS
    size: int = 64
    train_count: int = 10_000
    held_out_count: int = 500
    seed: int = 0

    def __post_init__(self):
        require_paths(self, "path")
        require_range(self, "size", at_least=16, at_most=2**14)
        require_range(self, "train_count", "held_out_count", at_least=1)
        require_range(self, "seed", at_least=0, below=2**32)
        require_range(self, "max_pixels", at_least=1, at_most=MOST_PIXELS)


def open_source(config: SourceConfig) -> Source[Record]:
    """The source that `config` describes. Shapes that are not there yet are drawn first.

    Raises:
        InputError: unknown kind, split or feature; nothing at the path.
        SystemFault: the machine cannot read it.
    """
    if config.kind == "folder":
        if not config.path:
            raise InputError(
                "data.source.path is empty: name the folder of pictures, such as"
                " --config.data.source.path=my_pictures"
            )
        return FolderSource(
            config.path, require_captions=config.require_captions, max_pixels=config.max_pixels
        )
    if config.kind not in KINDS:
        raise InputError(f"kind={config.kind!r}: choices are {', '.join(KINDS)}")
    # TFDS takes a second to import and is absent from many GPU images: only who reads it pays.
    from cogview_jax.data.sources import tfds

    if config.kind == "tfds":
        builder, captions = tfds.find_builder(config.name, config.path), ()
    else:
        builder, captions = _draw_shapes(config), SHAPES_CAPTIONS
    return tfds.TfdsSource(
        builder,
        config.split,
        image_key=config.image_key,
        caption_keys=config.caption_keys or captions,
        require_captions=config.require_captions,
        max_pixels=config.max_pixels,
    )


def readable(source: Source[Item]) -> Iterator[Item]:
    """The records of a source in their order; those that cannot be used are passed over."""
    for i in range(len(source)):
        with contextlib.suppress(BadRecord):
            record = source[i]
            yield record


def _draw_shapes(config: SourceConfig):
    from cogview_jax.data.sources import shapes, tfds

    directory = shapes.prepare(
        config.path,
        size=config.size,
        train_count=config.train_count,
        held_out_count=config.held_out_count,
        seed=config.seed,
    )
    return tfds.open_builder(directory)
