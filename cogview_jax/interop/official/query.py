"""The release's query language: one line that says what is given and what is to be generated.

    [ROI1] a red circle [BASE] [BOI1] [MASK]*1024

Words are separated by single spaces. A word is one of

    [NAME]              a command of the vocabulary
    [MASK], [MASK]*N    one place to fill, or N of them
    [Image]PATH         the codes of the image at PATH; [ImageN]PATH gives the first N of them
                        and leaves places for the rest

and every other word is text, in which a command glued to other characters is no command. Words of
text that follow each other are encoded together.

What the line says is what the sequence has, in its order. The release moves text that stands right
before an image behind it, and reads no more than 1024 codes of one; its own queries do neither.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cogview_jax.data.records import is_unicode
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.decode import OPEN
from cogview_jax.tokenizers.text import TextTokenizer
from cogview_jax.tokenizers.vocabulary import COMMANDS, Vocabulary, token_ids

#: Of a query, the most characters that are read, and the tokens it may stand for by default.
CHARACTERS, LONGEST = 1 << 20, 1 << 16

#: Digits of a number that is read.
_DIGITS = 12
_IMAGE = re.compile(r"\[Image([0-9]*)\](.+)", re.DOTALL)


def parse_query(
    query: str,
    vocabulary: Vocabulary,
    text: TextTokenizer,
    read_codes: Callable[[str], Sequence[int] | np.ndarray],
    longest: int = LONGEST,
) -> np.ndarray:
    """The sequence a query describes: int32 [n], OPEN (-1) where a token is to be generated.

    Args:
        query: see the head of this file.
        vocabulary: where the ids of codes, text and commands lie.
        text: encodes the words that are text.
        read_codes: the codes of the image at a path, in raster order; raises InputError where
            there is none. The language has no word for an image's size: this function decides it.
        longest: tokens that the sequence may have; nothing is made of a query that stands for more.

    Raises:
        InputError: the query is too long, a [MASK] or an [Image] is not written as above, text does
            not fit the vocabulary, or an image cannot be read.
    """
    if len(query) > CHARACTERS:
        raise InputError(f"a query of {len(query)} characters: expected at most {CHARACTERS}")
    sequence: list[int] = []
    words: list[str] = []

    def add(ids: Sequence[int]) -> None:
        if len(sequence) + len(ids) > longest:
            raise InputError(f"a query of more than {longest} tokens: expected at most so many")
        sequence.extend(ids)

    def flush() -> None:
        add(text_ids(" ".join(words), vocabulary, text))
        words.clear()

    for word in query.split(" "):
        ids = _special_ids(word, vocabulary, read_codes, longest)
        if ids is None:
            words.append(word)
            continue
        flush()
        add(ids)
    flush()
    return token_ids(sequence, "a query")


def text_ids(words: str, vocabulary: Vocabulary, text: TextTokenizer) -> list[int]:
    """The ids of a text in the vocabulary; InputError where it holds too few pieces for them."""
    if not is_unicode(words) or "\0" in words:
        raise InputError(f"{words[:60]!r} is no text: expected Unicode without surrogates and NUL")
    pieces = text.encode(words)
    if pieces and max(pieces) >= vocabulary.text:
        raise InputError(
            f"{words[:60]!r} has piece {max(pieces)}, but the vocabulary has {vocabulary.text}"
            " pieces"
        )
    return [vocabulary.text_start + piece for piece in pieces]


class Decoded(NamedTuple):
    """What a sequence holds.

    parts: its texts and commands ("[ROI1]") in order. images: the codes of each image in order.
    """

    parts: list[str]
    images: list[list[int]]


def decode_sequence(ids: Sequence[int], vocabulary: Vocabulary, text: TextTokenizer) -> Decoded:
    """Texts, commands and images of a sequence, as the release reads them.

    A text ends at a command and goes on after codes; an image ends at [EOI1], [EOI2] or [EOI3]
    only, or with the sequence. A place still open counts as a code.

    Raises:
        InputError: the codes of an image are no square, or an id has no meaning.
    """
    parts: list[str] = []
    images: list[list[int]] = []
    pieces: list[int] = []
    codes: list[int] = []

    def flush_text() -> None:
        if pieces:
            parts.append(text.decode(pieces))
            pieces.clear()

    def flush_codes() -> None:
        if round(len(codes) ** 0.5) ** 2 != len(codes):
            raise InputError(f"an image of {len(codes)} codes: expected a square number")
        if codes:
            images.append(codes.copy())
            codes.clear()

    for i in map(int, ids):
        if i < vocabulary.codes:
            codes.append(i)
        elif i < vocabulary.text_start + min(len(text), vocabulary.text):
            pieces.append(i - vocabulary.text_start)
        elif 0 <= i - vocabulary.commands_start < len(COMMANDS):
            command = COMMANDS[i - vocabulary.commands_start]
            flush_text()
            parts.append(f"[{command}]")
            if command.startswith("EOI"):
                flush_codes()
        else:
            raise InputError(f"id {i} is neither a code nor a text piece nor a command")
    flush_codes()
    flush_text()
    return Decoded(parts, images)


def _special_ids(
    word: str,
    vocabulary: Vocabulary,
    read_codes: Callable[[str], Sequence[int] | np.ndarray],
    longest: int,
) -> Sequence[int] | None:
    """The ids of a word that is no text; None for one that is."""
    if word == "[MASK]":
        return [OPEN]
    if word.startswith("[MASK]*"):
        count = word.removeprefix("[MASK]*")
        if not (count.isdecimal() and count.strip("0")):
            raise InputError(f"{word[:60]!r}: expected [MASK]*N with a number N of at least 1")
        if len(count) > _DIGITS or int(count) > longest:
            raise InputError(
                f"{word[:60]!r} stands for more than {longest} tokens: expected at most so many"
            )
        return [OPEN] * int(count)
    if word.startswith("[Image"):
        match = _IMAGE.fullmatch(word)
        if not match:
            raise InputError(
                f"{word[:60]!r}: expected [Image]PATH, or [ImageN]PATH with a number N"
            )
        given, path = match.groups()
        codes = [int(code) for code in read_codes(path)]
        # A number of more digits is above any number of codes.
        kept = min(int(given), len(codes)) if 0 < len(given) <= _DIGITS else len(codes)
        return codes[:kept] + [OPEN] * (len(codes) - kept)
    if word[:1] + word[-1:] == "[]" and word[1:-1] in COMMANDS:
        return [vocabulary.command(word[1:-1])]
    return None
