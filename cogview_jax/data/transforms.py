"""Pixels to pixels and codes to codes, before a batch is made: channels, crops, augmentation.

Everything here is a pure function over numpy arrays. Random functions take a generator.

    h, w  height and width before; s  side of the square after; r, c  rows and columns after
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cogview_jax.runtime.errors import InputError

#: How an image gets the aspect ratio of the codes: its centre is cut out, or a part of it at a
#: random place, or all of it is shown on white paper.
Crop = Literal["center", "random", "pad"]


def to_rgb(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """Grey, grey with alpha, RGB or RGBA as RGB; transparent parts show white paper.

    Args:
        image: uint8 [h, w] or [h, w, c] with c = 1, 2, 3 or 4 channels.

    Returns:
        uint8 [h, w, 3].

    Raises:
        InputError: another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise InputError(
            f"image of {image.dtype} {list(image.shape)}: expected uint8 [h, w] or [h, w, channels]"
        )
    if image.ndim == 2:
        image = image[..., None]
    channels = image.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise InputError(f"image with {channels} channels: expected 1, 2, 3 or 4")
    if channels in (2, 4):
        colour, alpha = image[..., :-1].astype(np.uint16), image[..., -1:].astype(np.uint16)
        image = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.broadcast_to(image, (*image.shape[:2], 3)).copy() if channels < 3 else image


def center_crop(
    image: UInt8[np.ndarray, "h w 3"], size: int | tuple[int, int]
) -> UInt8[np.ndarray, "r c 3"]:
    """The largest centred part of the image with the aspect ratio of `size`, at that size.

    Args:
        image: uint8 [h, w, 3] of any size; smaller ones are upsampled.
        size: rows and columns (r, c) in pixels; one number for a square.

    Returns:
        uint8 [r, c, 3]: of a square, what "shorter side to s, then crop the centre" shows. The
        part has whole pixels. An image that has this size already is not touched.
    """
    height, width = image.shape[:2]
    size = (size, size) if isinstance(size, int) else size
    scale = min(height / size[0], width / size[1])
    part = max(1, round(scale * size[0])), max(1, round(scale * size[1]))
    return _resized(image, (height - part[0]) // 2, (width - part[1]) // 2, part, size)


def pad_to_fit(
    image: UInt8[np.ndarray, "h w 3"], size: int | tuple[int, int]
) -> UInt8[np.ndarray, "r c 3"]:
    """The whole image, as large as `size` allows, in the middle of white paper.

    Args:
        image: uint8 [h, w, 3] of any size; smaller ones are upsampled.
        size: rows and columns (r, c) in pixels; one number for a square.

    Returns:
        uint8 [r, c, 3]. An image that has this size already is not touched.
    """
    height, width = image.shape[:2]
    size = (size, size) if isinstance(size, int) else size
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(scale * height)), max(1, round(scale * width))
    shown = _resized(image, 0, 0, (height, width), inner)
    if inner == size:
        return shown
    paper = np.full((*size, 3), 255, np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    paper[top : top + inner[0], left : left + inner[1]] = shown
    return paper


def fitted(
    image: UInt8[np.ndarray, "h w 3"], size: int | tuple[int, int], crop: Crop
) -> UInt8[np.ndarray, "r c 3"]:
    """The image at `size`: padded where `crop` says so, or its centre; see the two functions."""
    return (pad_to_fit if crop == "pad" else center_crop)(image, size)


def random_crop(
    image: UInt8[np.ndarray, "h w 3"],
    size: int,
    generator: np.random.Generator,
    smallest: float,
) -> UInt8[np.ndarray, "s s 3"]:
    """A random square of the image, at `size` pixels.

    Args:
        image: uint8 [h, w, 3].
        size: the side s of the result.
        generator: source of the randomness: two places and a scale, each uniform.
        smallest: the least side of the square, as a share of the image's shorter side.

    Returns:
        uint8 [s, s, 3].
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    side = max(1, round(shorter * generator.uniform(smallest, 1.0)))
    top = int(generator.integers(height - side + 1))
    left = int(generator.integers(width - side + 1))
    return _resized(image, top, left, (side, side), (size, size))


def corrupted(
    tokens: Int[np.ndarray, " t"], codes: int, share: float, generator: np.random.Generator
) -> Int[np.ndarray, " t"]:
    """Tokens of which this share of the image codes is others, drawn from all codes alike.

    Args:
        tokens: of a sequence; those below `codes` are image codes.
        codes: how many there are.
        share: the probability of each to be replaced; a draw may be the same again.
        generator: source of the randomness.
    """
    chosen = (tokens < codes) & (generator.random(tokens.shape) < share)
    return np.where(
        chosen, generator.integers(codes, size=tokens.shape, dtype=tokens.dtype), tokens
    )


@dataclasses.dataclass(frozen=True)
class SquareView:
    """How an image is shown to a model: as a square, with or without augmentation.

    Attributes:
        size: the side in pixels.
        smallest_crop: 1 takes the whole of the shorter side; a smaller share takes random squares,
            whose side is between this share and the whole of the shorter side.
        flip: mirror left and right half of the time. Off by default: captions say left and right.
        crop: where a square lies that has the whole of the shorter side; "pad" shows all of the
            image.
    """

    size: int
    smallest_crop: float = 1.0
    flip: bool = False
    crop: Crop = "center"

    def __post_init__(self):
        """Refuses sizes and shares that mean nothing."""
        if self.size < 1:
            raise InputError(f"size={self.size}: expected at least 1 pixel")
        if not 0.0 < self.smallest_crop <= 1.0:
            raise InputError(f"smallest_crop={self.smallest_crop}: expected a share in (0, 1]")

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], generator: np.random.Generator
    ) -> UInt8[np.ndarray, "s s 3"]:
        """uint8 [h, w, 3] -> uint8 [size, size, 3]."""
        if self.smallest_crop < 1.0 or self.crop == "random":
            image = random_crop(image, self.size, generator, self.smallest_crop)
        else:
            image = fitted(image, self.size, self.crop)
        if self.flip and generator.random() < 0.5:
            image = image[:, ::-1]
        return image

    def still(self) -> "SquareView":
        """The same without what is random: how an image is shown where models are measured."""
        crop = self.crop if self.crop == "pad" else "center"
        return SquareView(self.size, crop=crop)


def _resized(
    image: np.ndarray, top: int, left: int, part: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The part of so many rows and columns at (top, left), scaled by Pillow's bicubic filter.

    Pillow widens the filter when it shrinks, so fine detail is averaged and does not alias
    (Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation").
    """
    cut = image[top : top + part[0], left : left + part[1]]
    if part == size:
        return cut
    return np.asarray(Image.fromarray(cut).resize(size[::-1], Image.Resampling.BICUBIC))


def code_grids(
    codes: Int[np.ndarray, " n"], grids: Sequence[tuple[int, int]]
) -> list[Int[np.ndarray, "_ _"]]:
    """The codes of an image in several sizes, in a row: int [n] -> [rows, columns] each."""
    ends = itertools.accumulate(math.prod(grid) for grid in grids)
    pieces = np.split(codes, list(ends)[:-1])
    return [piece.reshape(grid) for piece, grid in zip(pieces, grids, strict=True)]


def random_window(
    grids: Sequence[Int[np.ndarray, "_ _"]], sides: Sequence[int], generator: np.random.Generator
) -> list[Int[np.ndarray, "_ _"]]:
    """The same random window of an image, cut out of its codes in each of several sizes.

    Super-resolution is trained on parts of images (CogView: crops of 256 pixels, and the same crops
    at 128), because it is applied to windows too (`sampling.super_resolution`). Codes are cut and
    not pixels, so that codes at a window's edge depend on what lies behind it, as in a whole image.

    Args:
        grids: codes, each a multiple of the smallest.
        sides: the side of the square window in each, in the proportion of the grids. Where it
            is a whole grid, no random number is used.
        generator: chooses the place of the window, a whole cell of the smallest grid.

    Returns:
        int [side, side] each.
    """
    smallest = min(range(len(grids)), key=lambda i: len(grids[i]))
    rows, columns = grids[smallest].shape
    top, left = generator.integers((rows - sides[smallest] + 1, columns - sides[smallest] + 1))
    windows = []
    for grid, side in zip(grids, sides, strict=True):
        scale = len(grid) // len(grids[smallest])
        y, x = scale * top, scale * left
        windows.append(grid[y : y + side, x : x + side])
    return windows
