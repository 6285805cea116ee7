"""What official weights do not tell: how a transformer's ids and positions are divided.

The ids are image codes, text pieces and commands, padded to a multiple of 128; the positions hold
one sequence of the pretraining task's length.
"""

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.layout import LayoutConfig
from cogview_jax.tokenizers.vocabulary import COMMANDS, Vocabulary

#: The released vocabulary, assumed of a part that is not given.
CODES, PIECES = 8192, 50_000
GRIDS = (64, 32, 16, 8)
#: Tokens of a sequence beside its text and codes: [ROI1], the size, [BOI1], [EOI1].
COMMAND_TOKENS = 4


def infer_vocabulary(size: int, codes: int | None, pieces: int | None) -> Vocabulary:
    """The vocabulary of `size` ids that has these codes and text pieces.

    A number that is not given is the released one where it fits; else codes are the largest power
    of two below half the ids, and pieces as many as there is room for.

    Raises:
        InputError: none is of that size.
    """
    commands = len(COMMANDS)
    if codes is None:
        half = 1 << max((size - 1) // 2, 1).bit_length() - 1
        codes = CODES if size > CODES + commands else half
    if pieces is None:
        released = Vocabulary(codes, PIECES).size == size
        pieces = PIECES if released else max(size - codes - commands, 1)
    vocabulary = Vocabulary(codes, pieces)
    if vocabulary.size != size:
        raise InputError(
            f"{codes} codes, {pieces} text pieces and {commands} commands make a vocabulary of"
            f" {vocabulary.size} ids (a multiple of 128), but the transformer has {size}"
        )
    return vocabulary


def infer_layout(positions: int, grid: int | None, task: str) -> LayoutConfig:
    """The layout that fills `positions` with a grid of codes and, for the rest, text.

    Without a grid it is the largest of 8, 16, 32 and 64 that leaves room for text.

    Raises:
        InputError: the grid leaves none.
    """

    def room(side: int) -> int:
        return positions - side**2 - COMMAND_TOKENS

    grid = next((side for side in GRIDS if room(side) > 0), GRIDS[-1]) if grid is None else grid
    if grid < 1 or room(grid) < 1:
        raise InputError(
            f"a grid of {grid} x {grid} codes does not fit {positions} positions, which hold"
            f" {COMMAND_TOKENS} commands and text too: choose a smaller --grid"
        )
    return LayoutConfig(task, room(grid), grid)
