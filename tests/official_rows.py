"""Rows as the release's loader makes them, and which of their positions it counts as text or image.

They differ from a layout's in two ways. A row has no regions: what is too long is cut at its end.
And a position counts by the token that goes in, not by its target: [BOI1], which predicts the first
code, is text, and the last code, which predicts [EOI1], is image.
"""

import numpy as np

from cogview_jax.tokenizers.layout import SIZE_COMMANDS
from cogview_jax.tokenizers.vocabulary import Vocabulary


def text_code_row(text: np.ndarray, codes: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """[ROI1] text [size] [BOI1] codes [EOI1], of ids of the vocabulary: int32 [n]."""
    sizes = {side**2: command for side, command in SIZE_COMMANDS.items()}
    before, middle, after = (
        np.array([vocabulary.command(name) for name in names], np.int32)
        for names in (("ROI1",), (sizes[len(codes)], "BOI1"), ("EOI1",))
    )
    return np.concatenate([before, text, middle, codes, after])


def cut_or_padded(
    row: np.ndarray, length: int, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """`row` at a length: tokens int32 [length], and valid bool [length], False on the [PAD]s."""
    tokens = np.full(length, vocabulary.command("PAD"), np.int32)
    kept = row[:length]
    tokens[: len(kept)] = kept
    return tokens, np.arange(length) < len(kept)


def loss_weights(
    tokens: np.ndarray, valid: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Which positions count as text, and which as image, by the token that goes in.

    Args:
        tokens: [..., L], whole rows; the model sees all but the last token.
        valid: [..., L], as from `cut_or_padded`. A position counts where its target is valid.
        vocabulary: tells codes from the rest; commands count as text.

    Returns:
        text_weights and image_weights, float32 [..., L - 1], as in `layout.Example`.
    """
    counted = np.asarray(valid, bool)[..., 1:]
    image = np.asarray(tokens)[..., :-1] < vocabulary.codes
    return (counted & ~image).astype(np.float32), (counted & image).astype(np.float32)
