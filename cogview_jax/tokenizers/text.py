"""The text tokenizer: a SentencePiece model, trained on captions or given as a file."""

import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sentencepiece

from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path


@dataclass(frozen=True)
class TextConfig:
    """How to train a text tokenizer.

    pieces: at most this many; small data gives fewer. algorithm: "unigram" for natural text; "bpe"
    merges by frequency, which keeps the words of formulaic captions apart where unigram makes
    pieces of whole phrases. character_coverage: of the characters in the captions, the share with a
    piece; every other character is written in bytes.
    """

    pieces: int = 50_000
    algorithm: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 0.9995

    def __post_init__(self):
        require_range(self, "pieces", at_least=1, at_most=2**24)
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
        """The tokenizer in the file `path` (*.model)."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no text tokenizer at {path}")
        return cls(path.read_bytes())

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

    def written(self, text: str) -> list[str]:
        """The pieces of `text` as they are written, with ▁ for a space."""
        return self._processor.EncodeAsPieces(text)

    def decode(self, pieces: Iterable[int]) -> str:
        """The text of `pieces`."""
        return self._processor.DecodeIds([int(piece) for piece in pieces])

    def save(self, path: Path) -> None:
        """Writes the model file."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.model)


def train_text_tokenizer(captions: Iterable[str], config: TextConfig) -> TextTokenizer:
    """Trains a SentencePiece model with byte fallback on `captions`; deterministic.

    Small data may not give `config.pieces` pieces: then as many as it gives. Raises InputError
    where there is no text to train on, and where its characters alone need more pieces than asked
    for.
    """
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise InputError("no text tokenizer can be trained: there are no captions")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(captions),
            model_writer=model,
            model_type=config.algorithm,
            vocab_size=config.pieces,
            character_coverage=config.character_coverage,
            byte_fallback=True,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = re.sub(r"^.*\]\s*", "", str(error).strip(), flags=re.DOTALL)
        raise InputError(
            f"no text tokenizer of {config.pieces} pieces can be trained on {len(captions)}"
            f" captions: {reason}"
        ) from error
    return TextTokenizer(model.getvalue())
