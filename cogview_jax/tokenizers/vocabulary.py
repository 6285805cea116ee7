"""The one vocabulary that image codes, text pieces and commands share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError

#: In the order of the released model; their ids follow the text pieces.
COMMANDS = (
    *("PAD", "BOI1", "BOI2", "BOI3", "EOI1", "EOI2", "EOI3", "ROI1", "ROI2", "ROI3"),
    *("SEP", "MASK", "CLS", "ENC", "TINY", "SMALL", "BASE", "BIG"),
    *(f"POS{i}" for i in range(9)),
)


@dataclass(frozen=True)
class Vocabulary:
    """Ids: image codes, then text pieces, then the 27 commands, padded to a multiple of 128.

    The padding does not depend on the mesh, so a checkpoint has the same shapes on any number of
    devices. The paper's: 8192 + 50000 + 27 -> 58240.

    Attributes:
        codes: how many image codes there are.
        text: room for text pieces; a text tokenizer with fewer leaves ids unused.
    """

    codes: int = 8192
    text: int = 50_000

    def __post_init__(self):
        require_range(self, "codes", "text", at_least=1, at_most=2**24)

    @property
    def size(self) -> int:
        """Number of ids, padding included."""
        return -(-(self.codes + self.text + len(COMMANDS)) // 128) * 128

    @property
    def text_start(self) -> int:
        """The id of text piece 0."""
        return self.codes

    @property
    def commands_start(self) -> int:
        """The id of the first command, [PAD]."""
        return self.codes + self.text

    def command(self, name: str) -> int:
        """The id of a command, by its name without brackets."""
        if name not in COMMANDS:
            raise InputError(f"unknown command token {name!r}; choose from {', '.join(COMMANDS)}")
        return self.commands_start + COMMANDS.index(name)


def token_ids(values: Sequence[Any] | np.ndarray, what: str) -> Int32[np.ndarray, "..."]:
    """Ids as an int32 array of the same shape.

    Args:
        values: whole numbers of any type.
        what: they are, for the message.

    Raises:
        InputError: they are no whole numbers, or do not fit 4 bytes, to which they are never cut.
    """
    ids = np.asarray(values)
    if not ids.size:
        return ids.astype(np.int32)
    if ids.dtype.kind not in "iu":
        raise InputError(f"{what} of type {ids.dtype}: expected whole numbers")
    if not -(2**31) <= ids.min() <= ids.max() < 2**31:
        raise InputError(f"{what} from {ids.min()} to {ids.max()}: ids are below {2**31}")
    return ids.astype(np.int32)
