"""From the bytes of an image file to RGB pixels."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cogview_jax.data.records import BadRecord
from cogview_jax.data.transforms import to_rgb


def decode_image(data: bytes, key: str) -> np.ndarray:
    """The pixels of an encoded image (PNG, JPEG, WebP, BMP), upright, as uint8 [h, w, 3].

    A camera's orientation tag is obeyed, transparent parts become white, and 16-bit greys keep
    their high byte.

    Raises:
        BadRecord: the bytes are no image, or one that breaks off; `key` names it.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # convert() would clip 16 bits to 8, mostly to white
                return to_rgb((np.asarray(image) // 256).astype(np.uint8))
            pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    except UnidentifiedImageError as error:  # whose text is an address in memory
        raise BadRecord(key, "unreadable image: of no known format") from error
    except Exception as error:  # Pillow's decoders let many kinds escape on damaged files
        raise BadRecord(key, f"unreadable image: {' '.join(str(error).split())}") from error
    return to_rgb(pixels)
