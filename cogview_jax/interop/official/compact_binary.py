"""The release's training file: rows of text ids and image codes, and nothing else."""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from cogview_jax.data.records import BadRecord
from cogview_jax.data.token_records import TokenRecord
from cogview_jax.runtime.errors import InputError

#: What stands in the places of a row that its text leaves over.
UNUSED = -1


class CompactBinary:
    """A file of rows as a source of `TokenRecord`s; safe to read from many threads.

    A row is `text_length` text ids, UNUSED (-1) where there is none, and then the image codes row
    by row: int32, little-endian, without a header. Text ids are those of the whole vocabulary, so
    the number of codes is added to the pieces; records count pieces from 0. A row without text is a
    record whose one caption is empty.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        text_length: int = 64,
        image_length: int = 1024,
        codes: int = 8192,
        pieces: int = 50_000,
    ):
        """Opens the file, which is read where it is asked for and nowhere else.

        Args:
            path: the file.
            text_length: text ids of a row.
            image_length: image codes of a row.
            codes: how many codes there are.
            pieces: how many text pieces there are.

        Raises:
            InputError: no file, an empty one, no whole number of rows, or ids of 8 bytes.
        """
        self._path = Path(path)
        self._text_length, self._codes, self._pieces = text_length, codes, pieces
        if not self._path.is_file():
            raise InputError(f"no compact binary data set at {path}")
        row, size = text_length + image_length, self._path.stat().st_size
        if not size or size % (4 * row):
            raise InputError(
                f"{path}: {size} bytes, expected a multiple of {4 * row}: rows of {text_length}"
                f" text ids and {image_length} codes, 4 bytes each"
            )
        self._rows = np.memmap(self._path, "<i4", "r").reshape(-1, row)
        self._refuse_wide(row)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    def key(self, i: int) -> str:
        """The name of row `i`: the file's, and its number."""
        return f"{self._path.name}:{i}"

    def __getitem__(self, i: int) -> TokenRecord:
        """Reads row `i`.

        Raises:
            BadRecord: an id of it is none of its kind.
        """
        text, codes = np.split(np.array(self._rows[i], np.int32), [self._text_length])
        text = text[text != UNUSED]
        return token_record(self.key(i), text, codes, self._codes, self._pieces)

    def _refuse_wide(self, row: int) -> None:
        """Refuses a file whose ids have 8 bytes each: their halves would be read as two ids."""
        start = np.array(self._rows[:2]).reshape(-1)[: 2 * row]
        low, high = start[0::2], start[1::2]
        if len(start) == 2 * row and low.max() > 0 and np.array_equal(high, low >> 31):
            raise InputError(
                f"{self._path}: its ids seem to have 8 bytes each (int64), expected 4: write them"
                " as little-endian int32"
            )


def token_record(
    key: str,
    text: Int[np.ndarray, " t"],
    codes: Int[np.ndarray, " n"],
    code_count: int,
    piece_count: int,
) -> TokenRecord:
    """The record of a row: its text as pieces from 0, and its image codes.

    Args:
        key: names it.
        text: ids of the whole vocabulary, in which the pieces stand behind the codes.
        codes: image codes.
        code_count: how many codes there are.
        piece_count: how many text pieces there are.

    Raises:
        BadRecord: an id is none of its kind.
    """
    for what, ids, first, limit in (
        ("text", text, code_count, piece_count),
        ("image", codes, 0, code_count),
    ):
        if len(ids) and not (ids.min() >= first and ids.max() < first + limit):
            raise BadRecord(
                key,
                f"{what} ids from {ids.min()} to {ids.max()}: expected {first} to"
                f" {first + limit - 1}",
            )
    pieces = (text - code_count).astype(np.int32)
    return TokenRecord(key, (pieces,), codes.astype(np.int32))
