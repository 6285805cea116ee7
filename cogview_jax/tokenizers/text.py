"""The text tokenizer: a SentencePiece model, trained on captions or given as a file."""

import hashlib
import io
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import atomic_path, read_regular

#: Captions of more bytes are not trained on. They are few, and training cuts them anyway.
LONGEST = 4192
#: Bytes of a model that are read; those of a million pieces have about 20 million.
MODEL_LIMIT = 256 << 20


@dataclass(frozen=True)
class TextConfig:
    """How to train a text tokenizer.

    Attributes:
        pieces: at most this many; small data gives fewer.
        algorithm: "unigram" for natural text; "bpe" merges by frequency, which keeps the words of
            formulaic captions apart where unigram makes pieces of whole phrases.
        character_coverage: of the characters in the captions, the share that gets a piece.
        byte_fallback: every other character is written in bytes, for which 256 pieces are set
            aside, so that any text can be told from its pieces. Without it all of them are one and
            the same unknown piece.
    """

    pieces: int = 50_000
    algorithm: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 0.9995
    byte_fallback: bool = True

    def __post_init__(self):
        # Three are not text: unknown, beginning and end.
        require_range(self, "pieces", at_least=4, at_most=2**24)
        require_range(self, "character_coverage", at_least=0.98, at_most=1)


class TextTokenizer:
    """A SentencePiece model in memory: text <-> pieces counted from 0."""

    def __init__(self, model: bytes):
        """Reads a serialised SentencePiece model; InputError where the bytes are none."""
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise InputError("the text tokenizer is not a readable SentencePiece model") from error
        self.model = model

    @classmethod
    def load(cls, path: Path | str) -> "TextTokenizer":
        """The tokenizer in the file `path` (*.model), of at most `MODEL_LIMIT` bytes."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no text tokenizer at {path}")
        model = retried(lambda: read_regular(path, MODEL_LIMIT), str(path))
        try:
            return cls(model)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @property
    def sha256(self) -> str:
        """The hash of the model file, hexadecimal."""
        return hashlib.sha256(self.model).hexdigest()

    def __len__(self) -> int:
        """Number of pieces."""
        return self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """The pieces of `text`."""
        return self._processor.EncodeAsIds(text)

    def lacks(self, text: str) -> bool:
        """Whether some of `text` is neither in a piece nor in bytes, and so lost."""
        return self._processor.unk_id() in self.encode(text)

    def unknown_share(self, texts: Iterable[str]) -> float:
        """The share of the characters of `texts`, without spaces, that no piece is made for.

        They are written in bytes, or lost where the tokenizer has no bytes.
        """
        known = unknown = 0
        for text in texts:
            for number, piece in zip(self.encode(text), self.text_tokens(text), strict=True):
                if self._processor.IsByte(number):
                    # In UTF-8 all bytes of a character but the first begin with the bits 10.
                    unknown += int(piece[1:-1], 16) & 0xC0 != 0x80
                elif self._processor.IsUnknown(number):
                    unknown += len(piece)
                else:
                    known += len(piece.replace("▁", ""))
        return unknown / max(1, known + unknown)

    def text_tokens(self, text: str) -> list[str]:
        """The pieces of `text` as strings, with ▁ for a space."""
        return self._processor.EncodeAsPieces(text)

    def decode(self, pieces: Iterable[int] | np.ndarray) -> str:
        """The text of `pieces`."""
        return self._processor.DecodeIds([int(piece) for piece in pieces])

    def save(self, path: Path) -> None:
        """Writes the model file."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.model)


def train_text_tokenizer(captions: Iterable[str], config: TextConfig) -> TextTokenizer:
    """Trains a SentencePiece model on `captions`; the same captions give the same bytes.

    Small data may not give `config.pieces` pieces: then as many as it gives. Captions of more than
    `LONGEST` bytes are left out, and counted on standard error.

    Raises:
        InputError: there is no text to train on, its characters alone need more pieces than asked
            for, or a caption is no Unicode.
    """
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise InputError("no text tokenizer can be trained: there are no captions")
    short = [caption for caption in captions if len(_encoded(caption)) <= LONGEST]
    left_out = len(captions) - len(short)
    if not short:
        raise InputError(
            f"no text tokenizer can be trained: each of the {left_out} captions is longer than"
            f" {LONGEST} bytes, which are left out"
        )
    if left_out:
        print(
            f"text tokenizer: {left_out} of {len(captions)} captions are longer than {LONGEST}"
            " bytes and are left out of its training",
            file=sys.stderr,
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(short),
            model_writer=model,
            model_type=config.algorithm,
            vocab_size=config.pieces,
            character_coverage=config.character_coverage,
            max_sentence_length=LONGEST,
            byte_fallback=config.byte_fallback,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"no text tokenizer of {config.pieces} pieces can be trained on"
            f" {counted(len(short), 'caption')}: {_reason(str(error), config)}"
        ) from error
    return TextTokenizer(model.getvalue())


def _encoded(caption: str) -> bytes:
    try:
        return caption.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the caption {caption[:80]!r} is no Unicode: {error.reason}") from None


def _reason(complaint: str, config: TextConfig) -> str:
    """SentencePiece's complaint in terms of our settings; its own words where it is a new one."""
    if sizes := re.search(r"required_chars\. \d+ vs (\d+)", complaint):
        fallback = ", or do without the 256 of data.text.byte_fallback" * config.byte_fallback
        return (
            f"data.text.pieces = {config.pieces}, but single characters take {sizes[1]}: raise it"
            " (and vocabulary.text), lower data.text.character_coverage"
            f" ({config.character_coverage}, at least 0.98){fallback}"
        )
    if "all_chars_count" in complaint:
        return "no character is left of them once spaces and what is not printed are taken away"
    return " ".join(complaint.split())
