"""The rows that the release trains on, and which of their positions count as text or image.

They differ from a layout's (`tokenizers/layout.py`) in two ways. A row has no regions: what is too
long is cut at its end, so the last codes and [EOI1] may be missing. And a position counts by the
token that goes in, not by its target: [BOI1], which predicts the first code, is text, and the last
code, which predicts [EOI1], is image.
"""

from collections.abc import Sequence

import numpy as np

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.layout import SIZE_COMMANDS
from cogview_jax.tokenizers.query import text_ids
from cogview_jax.tokenizers.text import TextTokenizer
from cogview_jax.tokenizers.vocabulary import Vocabulary, token_ids


def text_code_row(
    text: str | Sequence[int],
    codes: Sequence[int],
    vocabulary: Vocabulary,
    tokenizer: TextTokenizer | None = None,
) -> np.ndarray:
    """[ROI1] text [size] [BOI1] codes [EOI1]: the pretraining row, int32 [n].

    Args:
        text: a text for `tokenizer`, or ids of the vocabulary (not pieces from 0).
        codes: of a picture of 8x8, 16x16, 32x32 or 64x64 codes, which its size command announces.
        vocabulary: where the ids lie.
        tokenizer: needed for a text.

    Raises:
        InputError: another number of codes, or ids out of their range.
    """
    if isinstance(text, str):
        assert tokenizer is not None, "a text needs its tokenizer"
        text = text_ids(text, vocabulary, tokenizer)
    ids = token_ids(text, "text")
    _check(ids, "text", vocabulary.text_start, vocabulary.commands_start)
    return np.concatenate(
        [_commands(vocabulary, "ROI1"), ids, _picture(codes, vocabulary, "BOI1", "EOI1")]
    )


def code_to_code_row(
    text: Sequence[int], low: Sequence[int], high: Sequence[int], vocabulary: Vocabulary
) -> np.ndarray:
    """text [size] [BOI1] low [EOI1] [size] [BOI2] high [EOI2]: one picture from another.

    text: ids of the vocabulary as `tokenizers.query.parse_query` gives them, [ROI1] included.
    Raises InputError as `text_code_row` does.
    """
    return np.concatenate(
        [
            token_ids(text, "text"),
            _picture(low, vocabulary, "BOI1", "EOI1"),
            _picture(high, vocabulary, "BOI2", "EOI2"),
        ]
    )


def pure_text_row(text: str, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> np.ndarray:
    """text [SEP]: a row without a picture."""
    ids = np.array(text_ids(text, vocabulary, tokenizer), np.int32)
    return np.concatenate([ids, _commands(vocabulary, "SEP")])


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


def _picture(codes: Sequence[int], vocabulary: Vocabulary, begin: str, end: str) -> np.ndarray:
    """[size] [begin] codes [end]."""
    array = token_ids(codes, "codes")
    sizes = {side**2: command for side, command in SIZE_COMMANDS.items()}
    if len(array) not in sizes:
        raise InputError(
            f"a picture of {len(array)} codes: expected {', '.join(map(str, sizes))} of them"
        )
    _check(array, "codes", 0, vocabulary.codes)
    first = _commands(vocabulary, sizes[len(array)], begin)
    return np.concatenate([first, array, _commands(vocabulary, end)])


def _commands(vocabulary: Vocabulary, *names: str) -> np.ndarray:
    return np.array([vocabulary.command(name) for name in names], np.int32)


def _check(ids: np.ndarray, what: str, first: int, last: int) -> None:
    if len(ids) and not (ids.min() >= first and ids.max() < last):
        raise InputError(
            f"{what} of ids from {ids.min()} to {ids.max()}: expected {first} to {last - 1}"
        )
