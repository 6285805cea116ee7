"""Images as the release reads them, to the last bit; for repeating its results.

It differs from `data/images.py` and `transforms.center_crop` in the filter (bilinear), in cutting
after scaling, and in dropping an alpha channel where we show white paper.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cogview_jax.data.images import load_image
from cogview_jax.data.records import BadRecord
from cogview_jax.runtime.errors import InputError

#: Pixels of a scaled image before its middle is cut out: a strip of one row would have billions.
MOST_PIXELS = 1 << 27


def official_pixels(data: bytes, key: str) -> np.ndarray:
    """The pixels of an encoded image as they are stored: uint8 [h, w, 3], or [h, w, 4] with alpha.

    Raises:
        BadRecord: no image, or one of another mode (grey, palette), at which the release fails too;
            see `decode_image`.
        SystemFault: there is too little memory.
    """
    image = load_image(data, key)
    if image.mode not in ("RGB", "RGBA"):
        raise BadRecord(key, f"image of mode {image.mode}: the release reads RGB and RGBA only")
    return np.asarray(image)


def official_square(pixels: np.ndarray, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """The image as the release's image tokenizer is shown it.

    The shorter side is scaled to `size` with Pillow's bilinear filter, which averages where it
    shrinks; then the centre is cut out, and an alpha channel dropped. Pillow scales colours
    weighted by alpha, so what is fully transparent becomes black. `codec.normalise` does the rest.

    Args:
        pixels: uint8 [h, w, 3 or 4].
        size: the side s of the result.

    Returns:
        uint8 [s, s, 3].
    """
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 3
        or pixels.shape[-1] not in (3, 4)
        or not pixels.size
    ):
        raise InputError(
            f"image of {pixels.dtype} {list(pixels.shape)}: expected uint8 [h, w, 3 or 4]"
        )
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter != size:
        height, width = size * height // shorter, size * width // shorter
        if height * width > MOST_PIXELS:
            raise InputError(
                f"image of {list(pixels.shape[:2])} pixels: with a shorter side of {size} it has"
                f" more than {MOST_PIXELS}"
            )
        scaled = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(scaled)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size, :3]
