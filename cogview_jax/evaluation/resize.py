"""How an image gets the size of a feature network: the protocols that packages for FID have.

On the same images and network, the way of resizing alone has moved FID by 40%, so a result names
it. Each protocol equals the package it is named after. What a network sees of the values, 0 to 255,
follows in `evaluation.feature_networks`.

Legend: h w rows and columns of an image, p pixels along a side of what the network takes.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


class Resize(NamedTuple):
    """A protocol.

    description: one line. comparable: whether results may stand beside those of others. apply:
    (image, uint8 [h, w, 3]; p) -> float32 [p, p, 3] of 0 to 255.
    """

    description: str
    comparable: bool
    apply: Callable[[np.ndarray, int], np.ndarray]


def clean(image: UInt8[np.ndarray, "h w 3"], pixels: int) -> Float[np.ndarray, "p p 3"]:
    """clean-fid (Parmar et al. 2022, arXiv 2104.11222): bicubic with antialiasing, not rounded.

    PIL resizes each channel as float32; what overshoots is clipped.
    """
    resized = np.empty((pixels, pixels, 3), np.float32)
    for channel in range(3):
        plane = Image.fromarray(image[:, :, channel].astype(np.float32))
        plane = plane.resize((pixels, pixels), Image.Resampling.BICUBIC)
        np.clip(np.asarray(plane), 0, 255, out=resized[:, :, channel])
    return resized


def legacy_pytorch(image: UInt8[np.ndarray, "h w 3"], pixels: int) -> Float[np.ndarray, "p p 3"]:
    """pytorch-fid: bilinear without antialiasing, centres of pixels at their middle."""

    def positions(size: int) -> np.ndarray:
        scale = np.float32(size / pixels)
        return np.maximum((np.arange(pixels, dtype=np.float32) + 0.5) * scale - 0.5, 0)

    return _bilinear(image, positions)


def tf1(image: UInt8[np.ndarray, "h w 3"], pixels: int) -> Float[np.ndarray, "p p 3"]:
    """torch-fidelity, after TensorFlow 1: bilinear without antialiasing, centres at the corner.

    The image is moved by up to half a pixel, and its last row and column are repeated.
    """
    return _bilinear(
        image, lambda size: np.arange(pixels, dtype=np.float32) * np.float32(size / pixels)
    )


def release(image: UInt8[np.ndarray, "h w 3"], pixels: int) -> Float[np.ndarray, "p p 3"]:
    """CogView's own evaluation: PIL's bilinear filter with antialiasing, rounded to 8 bits."""
    resized = Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


RESIZES: Mapping[str, Resize] = MappingProxyType(
    {
        "clean": Resize("clean-fid: PIL's bicubic filter, antialiased, in floats", True, clean),
        "legacy_pytorch": Resize(
            "pytorch-fid: bilinear, half-pixel centres, not antialiased", True, legacy_pytorch
        ),
        "tf1": Resize(
            "torch-fidelity and TensorFlow 1: bilinear, corners, not antialiased", True, tf1
        ),
        "release": Resize(
            "CogView's own evaluation code; not comparable with FID of anybody else",
            False,
            release,
        ),
    }
)


def _bilinear(
    image: UInt8[np.ndarray, "h w 3"], positions: Callable[[int], np.ndarray]
) -> Float[np.ndarray, "p p 3"]:
    """Interpolates at positions(size), float32 [p], along each axis; the edge goes on outside."""
    values = image.astype(np.float32)
    for axis in (0, 1):
        size = image.shape[axis]
        at = positions(size)
        low = at.astype(np.int64)
        share = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first = np.take(values, low, axis)
        values = np.take(values, np.minimum(low + 1, size - 1), axis)
        values -= first
        values *= share
        values += first
    return values
