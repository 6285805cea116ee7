"""One captioned image, and the report of one that cannot be read."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

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

    It is about the data alone. What the machine gets wrong, such as a disk or too little memory, is
    a `SystemFault`, which nobody counts.
    """

    #: Whether a filter left it out; then nothing is wrong with it.
    filtered: ClassVar[bool] = False

    def __init__(self, key: str, reason: str):
        """`reason` is one line for people; both are made `printable`."""
        key, reason = printable(key), printable(reason)
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


class FilteredRecord(BadRecord):
    """A record that a filter of the config leaves out, which does not count as damage."""

    filtered = True


def printable(text: str) -> str:
    r"""`text` on one line and valid Unicode, so that any file can hold it.

    The names of files may be any bytes, and JSON may hold half a surrogate pair: Python keeps both
    in strings that no encoding can write. They become escapes, as "\udc80"; so do ends of lines.
    """
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text.replace("\r", "\\r").replace("\n", "\\n")


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write `text`: it holds no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def clean_captions(texts: Iterable[str], key: str, *, required: bool) -> tuple[str, ...]:
    """The captions among `texts` that say something, without outer white space.

    Raises:
        BadRecord: one is no Unicode, or none is left although one is `required`.
    """
    captions = tuple(text.strip() for text in texts if text.strip())
    if not all(is_unicode(caption) for caption in captions):
        raise BadRecord(key, "caption is no Unicode text: it holds a lone surrogate")
    if required and not captions:
        raise BadRecord(key, "empty caption")
    return captions
