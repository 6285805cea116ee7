"""One captioned image, and the report of one that cannot be read."""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """A captioned image.

    Attributes:
        key: names the record within its source, for logs and stores.
        image: uint8 [h, w, 3], RGB.
        captions: the texts that describe it; empty only where captions are not required.
    """

    key: str
    image: np.ndarray
    captions: tuple[str, ...]


class BadRecord(Exception):
    """A record that cannot be used, raised when it is read: which one (`key`) and why (`reason`).

    Large data sets always hold some. Whoever reads decides: training takes the next record,
    preparing leaves it out, and both write it down in a `SkippedLog`.
    """

    def __init__(self, key: str, reason: str):
        """`reason` is one line for people."""
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


def clean_captions(texts: Iterable[str], key: str, *, required: bool) -> tuple[str, ...]:
    """The captions among `texts` that say something, without outer white space.

    Raises:
        BadRecord: none is left although one is `required`.
    """
    captions = tuple(text.strip() for text in texts if text.strip())
    if required and not captions:
        raise BadRecord(key, "empty caption")
    return captions
