"""The release's LMDBs of tokens: whole sequences, as its preprocessing writes them."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from cogview_jax.data.records import BadRecord
from cogview_jax.data.token_records import TokenRecord
from cogview_jax.interop.numpy_pickle import unpickled_integers
from cogview_jax.interop.official.compact_binary import token_record
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.vocabulary import Vocabulary

#: The key that tells how many rows there are, in so many digits; theirs are their numbers, as text.
_LENGTH, _DIGITS = b"length", 18
#: The commands that say how large an image is: one of them stands before it.
_SIZES = ("TINY", "SMALL", "BASE", "BIG")
#: The magic number of an LMDB, which stands behind the header of its first page.
_MAGIC, _HEAD = b"\xde\xc0\xef\xbe", 64
#: The most bytes of a row.
_ROW_LIMIT = 1 << 20


class TokenLmdb:
    """An LMDB of rows as a source of `TokenRecord`s; safe to read from many threads.

    A row is [ROI1], the text ids, [BASE] or the token of another size, [BOI1], the image codes row
    by row and [EOI1], and [PAD] behind them if need be: a pickled numpy array of whole numbers, of
    which nothing is run. Text ids are those of the whole vocabulary, as in `CompactBinary`. Records
    count pieces from 0.
    """

    def __init__(self, path: str | Path, *, image_length: int, vocabulary: Vocabulary, pieces: int):
        """Opens the LMDB, which is read where it is asked for and nowhere else.

        Args:
            path: the file, data.mdb in most cases.
            image_length: image codes of a row.
            vocabulary: of the ids.
            pieces: how many text pieces there are.

        Raises:
            InputError: it is no LMDB, or does not say how many rows it has; lmdb is not installed.
        """
        if importlib.util.find_spec("lmdb") is None:
            raise InputError(
                f"{path} is an LMDB: install what reads it with `pip install 'cogview-jax[lmdb]'`"
            )
        # lmdb is imported only here, since few runs need it.
        from cogview_jax.data.lmdb_file import DATA, opened

        self._file = opened(str(path))
        folder, name = os.path.split(self._file.path)
        self._name = os.path.basename(folder) if name == DATA else name
        self._image_length, self._vocabulary, self._pieces = image_length, vocabulary, pieces
        count = self._file.get(_LENGTH) or b""
        rows = int(count) if count.isdigit() and len(count) <= _DIGITS else 0
        if not 0 < rows <= 2 * self._file.entries:
            raise InputError(
                f"{path}: expected rows of tokens with the keys 0, 1, 2 and so on, and their number"
                f" as the key length; it has {self._file.entries} keys, and length is"
                f" {repr(count[:_DIGITS])[1:]}"
            )
        self._count = rows

    def __len__(self) -> int:
        """The number of rows."""
        return self._count

    def key(self, i: int) -> str:
        """The name of row `i`: that of the LMDB, and its number."""
        return f"{self._name}:{i}"

    def __getitem__(self, i: int) -> TokenRecord:
        """Reads row `i`.

        Raises:
            BadRecord: it is not there, is no array of whole numbers, or not in the order above.
            InputError: the LMDB is damaged.
        """
        value = self._file.get(str(i).encode())
        if value is None or len(value) > _ROW_LIMIT:
            raise BadRecord(self.key(i), "there is no such row" if value is None else "too large")
        try:
            row = unpickled_integers(value).reshape(-1)
        except InputError as error:
            raise BadRecord(self.key(i), str(error)) from None
        text, codes = self._parts(i, row)
        return token_record(self.key(i), text, codes, self._vocabulary.codes, self._pieces)

    def _parts(self, i: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The text ids and the codes of a row."""
        command = self._vocabulary.command
        begins = np.flatnonzero(row == command("BOI1"))
        begin = int(begins[0]) if len(begins) else 0
        end = begin + 1 + self._image_length
        sizes = [command(name) for name in _SIZES]
        if (
            begin < 2
            or row[0] != command("ROI1")
            or row[begin - 1] not in sizes
            or row[end : end + 1].tolist() != [command("EOI1")]
            or np.any(row[end + 1 :] != command("PAD"))
        ):
            raise BadRecord(
                self.key(i),
                f"{len(row)} ids: expected [ROI1] text [BASE] [BOI1] {self._image_length} codes"
                " [EOI1]",
            )
        return row[1 : begin - 1], row[begin + 1 : end]


def is_lmdb(path: str | Path) -> bool:
    """Whether a file begins as an LMDB does."""
    with open(path, "rb") as file:
        return _MAGIC in file.read(_HEAD)
