"""Position ids of the release's sampler, which restart where a second image begins.

Its two conventions differ at [ROI2]: in finetuning the first [ROI2] has position 0 itself; in
sampling the last one keeps its place in the row, and only the token after it has 1. So released
weights never saw the position that sampling gives to [ROI2].
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.vocabulary import Vocabulary


def sampling_positions(
    sequence: Sequence[int] | np.ndarray, vocabulary: Vocabulary
) -> list[Int32[np.ndarray, " _"]]:
    """Position ids that the model is called with while a sequence is filled, call by call.

    Every token to be generated takes one call, which is fed all tokens since the call before.
    Within a call, what follows the last given [ROI2] up to there counts from it; a generated [ROI2]
    changes nothing. Nothing keeps positions below the number that was learned.

    Args:
        sequence: ids, negative where one is to be generated (`query.parse_query`).
        vocabulary: knows [ROI2].

    Returns:
        int32 [tokens fed] of each call.

    Raises:
        InputError: the first token is to be generated, which leaves nothing to feed.
    """
    row = np.asarray(sequence)
    if not len(row) or row[0] < 0:
        raise InputError("a sequence to fill begins with a given token: there is none")
    calls, fed = [], 0
    for end in np.flatnonzero(row < 0):
        places = np.arange(fed, end, dtype=np.int32)
        restarts = np.flatnonzero(row[:end] == vocabulary.command("ROI2"))
        if len(restarts):
            places = np.where(places > restarts[-1], places - np.int32(restarts[-1]), places)
        calls.append(places)
        fed = int(end)
    return calls
