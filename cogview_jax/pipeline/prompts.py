"""Prompts as the text tokens of a layout: encoded, cut or refused."""

import sys
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from cogview_jax.pipeline.parts import Parts
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.prompt import need_text, shown

#: Texts that are remembered as reported, which a server has without end.
MOST_REPORTED = 1000


def need_one_each(texts: Sequence[str], images: np.ndarray, method: str) -> None:
    """InputError unless there is one text for each image; `method` is whose, for the message."""
    if isinstance(texts, str):
        raise InputError(
            f"{method} got the text {shown(texts)}: expected a list with one for each image"
        )
    if len(texts) != len(images):
        raise InputError(
            f"{method} got {counted(len(images), 'image')} and {counted(len(texts), 'text')}"
        )


class Prompts:
    """Turns texts into the tokens of a layout's text region.

    A text with more tokens than the region holds is cut there, as captions are in training, and
    standard error says so once; with `long` "refuse" it is an error.
    """

    def __init__(self, parts: Parts, long: Literal["cut", "refuse"] = "cut"):
        """The text tokenizer and the layout are those of `parts`, once texts are asked for."""
        self.parts, self.long = parts, long
        self._reported: set[str] = set()

    def pieces_of(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """The text tokens of every text, counted from 0; none where the layout reads no text.

        Raises:
            InputError: a text is blank, has more than MOST_CHARACTERS, is no Unicode, or is longer
                than the region and to be refused.
        """
        found = {text: self._encoded(text) for text in dict.fromkeys(texts)}
        new = [says for text, (_, says) in found.items() if says and text not in self._reported]
        if len(self._reported) > MOST_REPORTED:
            self._reported.clear()
        self._reported |= {text for text, (_, says) in found.items() if says}
        if new:
            more = f"; {len(new) - 1} more prompts too" if new[1:] else ""
            print(f"{new[0]}, as captions are in training{more}", file=sys.stderr)
        return {text: pieces for text, (pieces, _) in found.items()}

    def warning(self, text: str) -> str | None:
        """What to say of a text of which a part is cut off, in one line; None of others.

        Raises:
            InputError: as `pieces_of`.
        """
        return self._encoded(text)[1]

    def refused(self, texts: Iterable[str]) -> dict[str, str]:
        """Those of the texts that `pieces_of` refuses, each with the reason."""
        found = {}
        for text in dict.fromkeys(texts):
            try:
                self._encoded(text)
            except InputError as error:
                found[text] = str(error)
        return found

    def _encoded(self, text: str) -> tuple[list[int], str | None]:
        """The tokens of a text, and what to say where some are cut off."""
        tokenizer, length = self.parts.tokenizer, self.parts.layout.region("text").length
        need_text(text, blank=not length)
        pieces = tokenizer.encode(text) if length else []
        if length and not pieces:
            raise InputError(f"prompt {shown(text)} holds no text")
        if len(pieces) <= length:
            return pieces, None
        says = f"prompt {shown(text)} has {len(pieces)} tokens, but the text region holds {length}"
        if self.long == "refuse":
            raise InputError(f"{says}: shorten it")
        return pieces[:length], f"{says}: it is cut there"
