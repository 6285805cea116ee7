"""CLIP's tokenizer: byte-level pairs of a `vocab.json` and a `merges.txt` of transformers.

A text is brought to the composed form of Unicode (NFC), every run of white space becomes one space,
and letters become small. It is split into words: contractions, runs of letters, single digits, runs
of the rest. The UTF-8 bytes of a word are symbols, the last marked by </w>; the pair of symbols
that stands first in the list of merges is joined, until no pair is in it.

This is CLIPTokenizer of transformers 5, which is CLIPTokenizerFast before. The older CLIPTokenizer
in Python differs: it repairs texts by the package ftfy, or where that is missing sets Chinese
characters apart and drops control characters.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_json, read_regular, text_lines

VOCABULARY, MERGES = "vocab.json", "merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"
#: Marks the last symbol of a word.
WORD_END = "</w>"
#: Tokens of a text at most, with both special tokens.
LENGTH = 77
#: The most bytes of either file that are read.
FILE_LIMIT = 64 << 20

_SPECIAL = re.compile(f"({re.escape(START)}|{re.escape(END)})")
#: Unicode's White_Space; Python's \s has four control characters more.
_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
#: A word that is no contraction, or white space, by the kinds of its characters (`_kind`).
_RUN = re.compile(r"L+|N|\*+| ")
#: Words that are kept in memory with their tokens.
_CACHED = 1 << 16


def _byte_symbols() -> tuple[str, ...]:
    """The character that stands for each byte: itself if it is printable in Latin-1, or another."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(256)
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_SYMBOLS = _byte_symbols()


class ClipTokenizer:
    """Texts to the tokens of a CLIP.

    Attributes:
        vocabulary: token -> id.
        start: the id in front of a text.
        end: the id behind a text, and of the padding.

    Raises:
        InputError: the vocabulary lacks a special token, a byte, or what a merge makes.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        where: str = "vocabulary",
    ):
        needed = itertools.chain(
            (START, END),
            BYTE_SYMBOLS,
            (symbol + WORD_END for symbol in BYTE_SYMBOLS),
            itertools.chain.from_iterable((a, b, a + b) for a, b in merges),
        )
        if missing := [token for token in needed if token not in vocabulary]:
            raise InputError(f"{where} lacks the token {missing[0]!r}: expected that of a CLIP")
        self.vocabulary = dict(vocabulary)
        self.start, self.end = vocabulary[START], vocabulary[END]
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._word_ids = functools.lru_cache(_CACHED)(self._merged)

    @classmethod
    def read(cls, folder: Path | str) -> "ClipTokenizer":
        """The tokenizer in a folder with `vocab.json` and `merges.txt`.

        Raises:
            InputError: one is missing, or is not what transformers writes for CLIP.
        """
        folder = Path(folder)
        for name in (VOCABULARY, MERGES):
            if not (folder / name).is_file():
                raise InputError(f"no {name} in {folder}: CLIP's tokenizer needs it")
        vocabulary = read_json(folder / VOCABULARY, limit=FILE_LIMIT)
        if not isinstance(vocabulary, dict) or not all(
            type(i) is int and i >= 0 for i in vocabulary.values()
        ):
            raise InputError(f"{folder / VOCABULARY}: expected an object of tokens and ids")
        return cls(vocabulary, _read_merges(folder / MERGES), str(folder / VOCABULARY))

    def tokens(self, text: str, length: int = LENGTH) -> list[int]:
        """The ids of a text, between start and end, at most `length`; what is beyond is cut off."""
        ids = (i for word in _words(text) for i in self._ids(word))
        return [self.start, *itertools.islice(ids, length - 2), self.end]

    def __call__(self, texts: Sequence[str], length: int = LENGTH) -> Int32[np.ndarray, "b t"]:
        """The ids of texts, padded by the end token: int32 [b, length]."""
        found = np.full((len(texts), length), self.end, np.int32)
        for row, text in zip(found, texts, strict=True):
            tokens = self.tokens(text, length)
            row[: len(tokens)] = tokens
        return found

    def _ids(self, word: str) -> tuple[int, ...]:
        return (self.vocabulary[word],) if word in (START, END) else self._word_ids(word)

    def _merged(self, word: str) -> tuple[int, ...]:
        """The ids of a word after all merges."""
        symbols = [BYTE_SYMBOLS[byte] for byte in word.encode("utf-8", "replace")]
        symbols[-1] += WORD_END
        while pairs := {p for p in itertools.pairwise(symbols) if p in self._ranks}:
            symbols = _joined(symbols, min(pairs, key=self._ranks.__getitem__))
        return tuple(self.vocabulary[symbol] for symbol in symbols)


def _joined(symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with each occurrence of a pair, from the left, made one."""
    found: list[str] = []
    rest = iter(range(len(symbols)))
    for i in rest:
        if tuple(symbols[i : i + 2]) == pair:
            found.append(symbols[i] + symbols[i + 1])
            next(rest)
        else:
            found.append(symbols[i])
    return found


def _words(text: str) -> Iterator[str]:
    """The words of a text; special tokens that it spells are words."""
    for part in _SPECIAL.split(text):
        if part in (START, END):
            yield part
        else:
            yield from _split(_clean(part))


def _clean(text: str) -> str:
    """Composed, with single spaces, in small letters: each by itself, whatever stands around it."""
    text = _SPACE.sub(" ", unicodedata.normalize("NFC", text))
    return "".join(character.lower() for character in text)


def _split(text: str) -> Iterator[str]:
    kinds = "".join(map(_kind, text))
    start = 0
    while start < len(text):
        found = _CONTRACTION.match(text, start) or _RUN.match(kinds, start)
        assert found, kinds[start]
        if kinds[start] != " ":
            yield text[start : found.end()]
        start = found.end()


def _kind(character: str) -> str:
    """L for a letter, N for a number, a space for white space, * for the rest."""
    if _SPACE.match(character):
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "*"


def _read_merges(file: Path) -> list[tuple[str, str]]:
    try:
        lines = text_lines(read_regular(file, FILE_LIMIT))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: {error}") from None
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    merges: list[tuple[str, str]] = []
    for line in lines:
        first, space, second = line.partition(" ")
        if not (first and space and second) or " " in second:
            shown = line if len(line) < 80 else f"{line[:77]}..."
            raise InputError(f"{file}: {shown!r} is no pair of symbols")
        merges.append((first, second))
    return merges
