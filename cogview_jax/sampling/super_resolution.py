"""Super-resolution in windows: a grid of codes continued into one twice as large."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.mesh import to_host
from cogview_jax.sampling.decode import OPEN, RowSeeds, generate
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.sampling.parallel import generate_parallel, usable_window
from cogview_jax.sampling.windows import Window, WindowPlan
from cogview_jax.tokenizers.layout import left_padded

#: From the number of an image and the source codes of a window: the tokens before its target, and
#: the positions.
Head = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
#: From a window and its samples [b, candidates, rows, columns]: which candidate is kept, [b].
Choose = Callable[[Window, np.ndarray], np.ndarray]


def upsampled_codes(
    params: Mapping[str, Any],
    head: Head,
    longest: int,
    codes: np.ndarray,
    keys: RowSeeds,
    *,
    plan: WindowPlan,
    model: Transformer,
    last: int,
    config: SamplingConfig,
    choose: Choose | None = None,
    on_window: Callable[[], None] | None = None,
) -> np.ndarray:
    """Codes int [b, g, g] -> int32 [b, 2g, 2g], all images at once, window by window.

    A cell that an earlier window filled is given to the later ones: those in front of the first
    open one belong to the prompt, which is one call. Where a window has several candidates, later
    windows continue the one that is chosen.

    Args:
        params: from `unstack_layers`.
        head: the sequence's beginning, int32 [n] twice (tokens and positions).
        longest: tokens of the longest head there can be: one compilation for all of them.
        codes: of the images.
        keys: what the random keys follow from, [b, candidates] each; a window has its own stream.
        plan: the windows.
        model: the transformer of `params`, with positions for a whole window's target.
        last: how many codes there are.
        config: temperature, filters and parallel window; InputError where it has guidance.
        choose: among the candidates of a window; needed where there is more than one.
        on_window: is called after each window, of all images.
    """
    config.need_no_guidance("super-resolution")
    size, images, candidates = 2 * plan.grid, np.arange(len(codes)), keys.seeds.shape[1]
    # Candidates share the cache of their prompt; pivots are a candidate's own.
    prompts = np.repeat(images, candidates)
    settings = row_settings([config] * (len(codes) * candidates))
    shared = candidates > 1 and not model.config.sparse
    target = np.zeros((len(codes), size, size), np.int32)
    for number, window in enumerate(plan.windows):
        cells = np.where(window.known, target[:, *window.target], OPEN).reshape(len(codes), -1)
        leading = window.leading
        rows, places = [], []
        for i, (source, own) in enumerate(zip(codes[:, *window.source], cells, strict=True)):
            before, at = head(i, source.ravel())
            rows.append(np.concatenate([before, own[:leading]]))
            places.append(np.concatenate([at, at[-1] + 1 + np.arange(leading)]))
        tokens, valid = left_padded(rows, longest + leading)
        positions, _ = left_padded(places, longest + leading)
        if not shared:
            tokens, valid, positions = tokens[prompts], valid[prompts], positions[prompts]
        cells = cells[prompts]
        prompt = (tokens, valid, keys.each(np.ravel)._replace(stream=np.uint32(number)))
        given = (positions, cells[:, leading:], prompts if shared else None)
        count = window.known.size - leading
        ids: dict[str, Any] = {"model": model, "count": count, "first": 0, "last": last}
        ahead = usable_window(model, config.parallel_window, count)
        if ahead > 1:
            above = window.known.shape[1]
            sampled, _ = generate_parallel(
                params, *prompt, settings, *given, window=ahead, above=above, **ids
            )
        else:
            sampled = generate(params, *prompt, settings, *given, **ids)
        cells[:, leading:] = to_host(sampled)
        cells = cells.reshape(len(codes), candidates, *window.known.shape)
        chosen: np.ndarray | int = 0
        if candidates > 1:
            assert choose is not None, "several candidates need a choice"
            chosen = choose(window, cells)
        target[:, *window.target] = cells[images, chosen]
        if on_window is not None:
            on_window()
    return target
