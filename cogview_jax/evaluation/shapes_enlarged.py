"""How near enlarged drawings of captioned shapes come to the same drawings in full size."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from cogview_jax.sampling.back_projection import ROUNDS, back_projected
from cogview_jax.shapes.fresh import fresh_scenes

#: What needs no model.
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def enlarged_report(
    enlarge: Callable[[np.ndarray, Sequence[str]], np.ndarray],
    reconstruct: Callable[[np.ndarray], np.ndarray],
    *,
    size: int,
    count: int,
    seed: int,
    rounds: int = ROUNDS,
) -> dict:
    """Mean squared errors of enlarged drawings, by what enlarged them.

    "drawn" is what codes show, of which the model draws every window more than once, and "enlarged"
    that brought back to the small picture (`back_projected`), as `super_resolve` gives it for all
    but released weights; "bilinear" and "bicubic" enlarge the small picture without a model,
    "bilinear_back_projected" is brought back in the same way, and "bilinear_of_codes" enlarges what
    the codes hold; "ceiling" is the large drawing through the image tokenizer, and nothing drawn in
    codes alone can be expected to do better. Of pixel values from 0 to 255.

    Args:
        enlarge: uint8 pictures [n, size, size, 3] and their texts -> those twice as large, as the
            codes alone draw them.
        reconstruct: uint8 pictures of either size through the image tokenizer and back.
        size: rows and columns of the small drawings.
        count: drawings of seen pairs of colour and shape, and as many of held-out ones.
        seed: of the drawings.
        rounds: of back-projection.

    Returns:
        {"seen" and "held_out": {"drawings": how many, "squared_error": {name: error}}}.
    """
    report = {}
    for fresh in fresh_scenes(count, seed):
        small, true = fresh.drawings(size), fresh.drawings(2 * size)
        resamplings = {name: resampled(small, method) for name, method in RESAMPLING.items()}
        drawn, smooth = enlarge(small, fresh.texts), resamplings["bilinear"]
        pictures = {
            "drawn": drawn,
            "enlarged": np.stack(back_projected(drawn, small, rounds)),
            **resamplings,
            "bilinear_back_projected": np.stack(back_projected(smooth, small, rounds)),
            "bilinear_of_codes": resampled(reconstruct(small), RESAMPLING["bilinear"]),
            "ceiling": reconstruct(true),
        }
        errors = {name: squared_error(each, true) for name, each in pictures.items()}
        report[fresh.name] = {"drawings": count, "squared_error": errors}
    return report


def squared_error(pictures: np.ndarray, true: np.ndarray) -> float:
    """The mean over all values of uint8 arrays of one shape."""
    return float(np.mean(np.square(pictures.astype(np.float64) - true)))


def resampled(pictures: np.ndarray, method: Image.Resampling) -> np.ndarray:
    """uint8 pictures [n, h, w, 3] in twice as many rows and columns, without a model."""
    height, width = pictures.shape[1:3]
    large = (2 * width, 2 * height)
    return np.stack(
        [np.asarray(Image.fromarray(picture).resize(large, method)) for picture in pictures]
    )
