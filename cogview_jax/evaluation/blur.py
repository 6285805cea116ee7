"""The blur of FID-k: images are blurred before their features are extracted.

The paper says "Gaussian with radius k" and names no kernel. Three readings are in use, and the
figure depends on which one it is, so the kernel has a name:

- `pil`: Pillow's GaussianBlur. Its radius is the standard deviation, approximated by three box
  filters in 8 bits; pixels at the border are repeated.
- `scipy`: a Gaussian of standard deviation k, cut off after 4 k; the border mirrors the image.
- `lafite`: that of Lafite's author, torchvision's kernel of 2k + 1 pixels with the standard
  deviation of a box of that size. Cut off so early, it blurs about half as much as the others.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter
from scipy import ndimage

from cogview_jax.runtime.errors import InputError


def blurred(
    image: UInt8[np.ndarray, "h w 3"], radius: int, kernel: str = "pil"
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image under the blur of FID-k, k = `radius`; radius 0 returns the image itself.

    Args:
        image: at the resolution that FID-k is defined at, 256 x 256 pixels in the paper.
        radius: in pixels; see above what each kernel makes of it.
        kernel: a name in `KERNELS`.

    Raises:
        InputError: there is no such kernel, or the radius is negative.
    """
    check_blur(radius, kernel)
    return image if radius == 0 else KERNELS[kernel](image, radius)


def check_blur(radius: int, kernel: str) -> None:
    """Raises InputError unless there is such a blur."""
    if kernel not in KERNELS:
        raise InputError(f"blur kernel {kernel!r}: expected one of {', '.join(KERNELS)}")
    if radius < 0:
        raise InputError(f"blur radius {radius}: expected at least 0")


def _pil(image: UInt8[np.ndarray, "h w 3"], radius: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _scipy(image: UInt8[np.ndarray, "h w 3"], radius: int) -> UInt8[np.ndarray, "h w 3"]:
    pixels = ndimage.gaussian_filter(
        image.astype(np.float64), (radius, radius, 0), mode="reflect", truncate=4
    )
    return np.rint(pixels).astype(np.uint8)


def _lafite(image: UInt8[np.ndarray, "h w 3"], radius: int) -> UInt8[np.ndarray, "h w 3"]:
    offsets, width = np.arange(-radius, radius + 1), 2 * radius + 1
    weights = np.exp(-6 * offsets**2 / (width**2 - 1))  # the variance is (width^2 - 1) / 12
    weights /= weights.sum()
    pixels = image.astype(np.float64)
    for axis in (0, 1):
        # ndimage's "mirror" is torch's "reflect": the border pixel is not repeated.
        pixels = ndimage.correlate1d(pixels, weights, axis, mode="mirror")
    return np.rint(pixels).astype(np.uint8)


#: The blurs by name.
KERNELS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "pil": _pil,
    "scipy": _scipy,
    "lafite": _lafite,
}
