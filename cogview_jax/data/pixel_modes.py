"""From the sample formats that Pillow decodes to 8-bit RGB."""

import io

import numpy as np
from PIL import Image

from cogview_jax.data.transforms import to_rgb

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def rgb_pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """The pixels of a decoded image, transparent parts white.

    Args:
        image: loaded, of any of Pillow's modes.
        data: the file it comes from.

    Returns:
        uint8 [h, w, 3]. Samples of more than 8 bits keep their highest 8.

    Raises:
        ValueError: the samples are of 32 bits, whole or float, which have no agreed white.
    """
    if image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its samples are {kind} of 32 bits, which have no agreed white")
    if image.format == "PNG" and image.mode in ("1", "L", "I;16", "RGB"):
        key = image.info.get("transparency")
        if key is not None:
            return _without_colour(image, key, data)
    if image.mode.startswith("I;16"):  # convert() would clip to 8 bits, mostly to white
        return to_rgb(_high_byte(image))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return to_rgb(np.asarray(image if image.mode == mode else image.convert(mode)))


def _high_byte(image: Image.Image) -> np.ndarray:
    """The highest 8 bits of a 16-bit grey image: uint8 [h, w]."""
    grey, tags = np.asarray(image), getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # of a TIFF that may be 12
    high = (grey >> (bits - 8)).astype(np.uint8)
    return 255 - high if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else high


def _without_colour(image: Image.Image, key: int | tuple[int, ...], data: bytes) -> np.ndarray:
    """A PNG one of whose colours, `key`, is transparent: in samples as the file has them."""
    depth = data[24]  # of the header, which comes first
    if image.mode == "RGB":
        samples = np.asarray(image).astype(np.uint16)
        if depth == 16:  # Pillow has kept the high bytes
            samples = samples * 256 + _low_bytes(data)
        clear = (samples == np.array(key) % 2**depth).all(axis=-1)
    elif image.mode == "I;16":
        clear = np.asarray(image) == key
    else:
        top = 2**depth - 1  # Pillow has scaled the samples to 0 to 255, but "1"'s key as well
        scaled = key if image.mode == "1" else (key & top) * 255 // top
        clear = np.asarray(image.convert("L")) == scaled
    pixels = to_rgb(_high_byte(image) if image.mode == "I;16" else np.asarray(image.convert("RGB")))
    return np.where(clear[..., None], np.uint8(255), pixels)


def _low_bytes(data: bytes) -> np.ndarray:
    """The low bytes of a PNG with 16-bit colours: uint8 [h, w, 3]."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        # Read in the wrong order of bytes, the low one is what Pillow keeps.
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        return np.asarray(image)
