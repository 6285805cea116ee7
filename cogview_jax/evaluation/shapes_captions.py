"""How often a model says what a drawing of captioned shapes shows."""

from collections.abc import Callable, Sequence

import numpy as np

from cogview_jax.runtime.errors import InputError
from cogview_jax.shapes.fresh import fresh_scenes
from cogview_jax.shapes.judge import Verdict, shares
from cogview_jax.shapes.scenes import Scene, parse_caption


def captions_report(
    describe: Callable[[np.ndarray], Sequence[str]], *, size: int, count: int, seed: int
) -> dict:
    """Shares of captions that are right, by attribute, for true drawings that are fresh.

    "colour_and_shape" is the share that names both of every object.

    Args:
        describe: uint8 pictures [n, size, size, 3] -> a text each, in either language.
        size: rows and columns of a picture.
        count: drawings of seen pairs of colour and shape, and as many of held-out ones.
        seed: of the drawings.

    Returns:
        {"seen" and "held_out": {"drawings": how many, "said": {attribute: share}}}.
    """
    report = {}
    for fresh in fresh_scenes(count, seed):
        texts = describe(fresh.drawings(size))
        verdicts = [said(text, scene) for text, scene in zip(texts, fresh.scenes, strict=True)]
        pairs = np.mean([verdict.colour and verdict.shape for verdict in verdicts])
        row = shares(verdicts) | {"colour_and_shape": float(pairs)}
        report[fresh.name] = {"drawings": count, "said": row}
    return report


def said(text: str, scene: Scene) -> Verdict:
    """Which attributes of a scene a text names rightly; none where it is no caption of shapes."""
    try:
        named = parse_caption(text)
    except InputError:
        return Verdict(*[False] * 6)
    colours, shapes = zip(*named.things, strict=True)
    true_colours, true_shapes = zip(*scene.things, strict=True)
    return Verdict(
        background=named.background == scene.background,
        count=len(named.objects) == len(scene.objects),
        position=named.centres == scene.centres,
        size=named.size == scene.size,
        colour=colours == true_colours,
        shape=shapes == true_shapes,
    )
