"""Super-resolution in windows: a grid of codes continued into one twice as large."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cogview_jax.models.transformer import Transformer
from cogview_jax.sampling.decode import generate
from cogview_jax.sampling.filters import SamplingConfig
from cogview_jax.sampling.magnify import MagnifyPlan, window_sequence
from cogview_jax.tokenizers.layout import left_padded
from cogview_jax.tokenizers.official_positions import sampling_positions
from cogview_jax.tokenizers.vocabulary import Vocabulary


def magnify(
    params: Mapping[str, Any],
    prompts: Sequence[np.ndarray],
    codes: np.ndarray,
    keys: jax.Array,
    *,
    model: Transformer,
    vocabulary: Vocabulary,
    config: SamplingConfig,
    plan: MagnifyPlan | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Codes int [b, g, g] -> int32 [b, 2g, 2g], all pictures at once, window by window.

    Sequences and positions are those the released weights expect (`window_sequence`,
    `sampling_positions`); a cell that an earlier window filled is given to the later ones.

    Args:
        params: from `unstack_layers`.
        prompts: ids of each picture up to and with [BOI1]: [ROI1] text [size] [BOI1].
        codes: of the pictures.
        keys: one typed key a picture.
        model: the transformer of `params`, with positions for a whole window's target.
        vocabulary: of the ids.
        config: temperature and filters; InputError where it has guidance.
        plan: the windows; the release's nine by default.
        progress: is told how many windows were done since the last time.
    """
    config.need_no_guidance("super-resolution")
    plan = plan or MagnifyPlan(grid=codes.shape[-1])
    size = 2 * plan.grid
    target = np.zeros((len(codes), size, size), np.int32)
    longest = max(len(prompt) for prompt in prompts)
    for number, window in enumerate(plan.windows):
        cells = window.known.size
        rows = [
            window_sequence(window, *row, vocabulary)
            for row in zip(prompts, codes, target, strict=True)
        ]
        heads, given = [row[:-cells] for row in rows], np.stack([row[-cells:] for row in rows])
        length = longest + len(heads[0]) - len(prompts[0])
        tokens, valid = left_padded(heads, length)
        # A place to draw behind the head makes the whole head one call.
        places = [sampling_positions([*head, -1], vocabulary)[0] for head in heads]
        drawn = generate(
            params,
            tokens,
            valid,
            jax.vmap(jax.random.fold_in, (0, None))(keys, number),
            left_padded(places, length)[0],
            given,
            model=model,
            count=cells,
            first=0,
            last=vocabulary.codes,
            config=config,
        )
        target[:, *window.target] = np.asarray(drawn).reshape(len(codes), *window.known.shape)
        if progress is not None:
            progress(1)
    return target
