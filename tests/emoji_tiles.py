"""Tiles of the embedded emoji, cut from their sheets by hand."""

import functools

import numpy as np
from PIL import Image

from cogview_jax.data import emoji_set


def cropped(style: str, number: int) -> np.ndarray:
    """The tile of a concept's number, uint8 [64, 64, 3]: 16 are in a row of a style's sheet."""
    left, top = 64 * (number % 16), 64 * (number // 16)
    return np.asarray(_opened(style).crop((left, top, left + 64, top + 64)))


@functools.cache
def _opened(style: str) -> Image.Image:
    with Image.open(emoji_set.FOLDER / f"{style}.webp") as image:
        return image.convert("RGB")
