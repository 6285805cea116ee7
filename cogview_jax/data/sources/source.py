"""What a source of records is, and how a config names one."""

import abc
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cogview_jax.data.images import MAX_PIXELS, MOST_PIXELS
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.runtime.config import Tagged, require_range

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


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Tagged, abc.ABC):
    """Where captioned images come from: the section `data.source` of a config.

    Each kind of source is a subclass with its own settings and an `open` method, and one file in
    this folder. Defining the subclass is enough to make its `kind` known to configs; those that
    come with the package are imported by `cogview_jax.data.sources`.

    Attributes:
        kind: which kind of source; a subclass fixes it, as `Literal`.
        require_captions: a record without a caption is bad. An image tokenizer needs none.
        max_pixels: an image with more pixels is bad. It is not decoded, so this bounds the memory
            that one image takes.
    """

    kind: str
    require_captions: bool = True
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        require_range(self, "max_pixels", at_least=1, at_most=MOST_PIXELS)

    @abc.abstractmethod
    def open(self) -> Source[Record]:
        """Opens the source; makes the data first if the kind can make them.

        Raises:
            InputError: a setting does not fit the data, or there are none.
            SystemFault: the machine cannot read the data.
        """


def readable(source: Source[Item]) -> Iterator[Item]:
    """The records of a source in their order; those that cannot be used are passed over."""
    for i in range(len(source)):
        with contextlib.suppress(BadRecord):
            record = source[i]
            yield record
