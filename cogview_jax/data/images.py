"""From the bytes of an image file to RGB pixels.

Files are decoded as what they are, whatever they are called, and only if that is one of `FORMATS`:
Pillow knows some forty more, and starts other programs for some of them.
"""

import io
import os
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError, features

from cogview_jax.data.bare_images import bare_image
from cogview_jax.data.pixel_modes import rgb_pixels
from cogview_jax.data.records import BadRecord
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import read_regular

_AVIF = "avif" in features.modules and features.check("avif")
#: What is decoded, by Pillow's names. JPEG includes the several images in one of some cameras.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", *(("AVIF",) if _AVIF else ()))
#: How files of these formats are called.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *((".avif",) if _AVIF else ()),
)
#: Pixels of an image that are decoded unless a config says otherwise.
MAX_PIXELS = 100_000_000
#: The most pixels that a config may allow: twice the default of Pillow's MAX_IMAGE_PIXELS, beyond
#: which Pillow opens nothing.
MOST_PIXELS = 178_956_970
#: The most bytes of an encoded image.
FILE_LIMIT = 256 << 20

_ORIENTATION = 0x0112
# We have a limit of our own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image_file(path: str | os.PathLike) -> bytes:
    """The bytes of an encoded image, of a regular file of at most FILE_LIMIT bytes.

    Raises:
        InputError: something else has this name, or it is larger.
        OSError: it is not there, or the user may not read it.
        SystemFault: the machine cannot read it.
    """
    return retried(lambda: read_regular(path, FILE_LIMIT), os.fspath(path))


def decode_image(
    data: bytes, key: str, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an encoded image, upright.

    A camera's orientation tag is obeyed, transparent parts become white, samples of more than 8
    bits keep their highest 8, and of several frames the first is taken. Metadata is best effort:
    where it is broken and the pixels are whole, the pixels count.

    Args:
        data: a file of one of `FORMATS`.
        key: names it.
        max_pixels: images of more are refused before their pixels take memory.

    Returns:
        uint8 [h, w, 3].

    Raises:
        BadRecord: the bytes are no such image, one that breaks off, or one that is too large.
        SystemFault: there is too little memory.
    """

    def decode() -> np.ndarray:
        image, used = _load(data, key, max_pixels)
        pixels = _converted(image, used, key)
        return np.ascontiguousarray(_upright(pixels, _orientation(image)))

    return retried(decode, key)


def load_image(data: bytes, key: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded image as it is stored, in Pillow's mode for it; see `decode_image`."""
    return retried(lambda: _load(data, key, max_pixels)[0], key)


def _load(data: bytes, key: str, max_pixels: int) -> tuple[Image.Image, bytes]:
    """The decoded image, and the bytes it was decoded from: those given, or bare of metadata."""
    try:
        return _opened(data, key, max_pixels), data
    except (BadRecord, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders let many kinds escape on damaged files
        # Where the metadata was at fault, what is left without it is whole.
        bare = bare_image(data)
        image = None if bare is None else _opened_bare(*bare, key, max_pixels)
        if bare is None or image is None:
            raise _unreadable(key, error) from error
        return image, bare[0]


def _opened_bare(data: bytes, exif: bytes, key: str, max_pixels: int) -> Image.Image | None:
    try:
        image = _opened(data, key, max_pixels)
    except (BadRecord, MemoryError):
        raise
    except Exception:
        return None
    image.info["exif"] = exif
    return image


def _opened(data: bytes, key: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(key, f"more than {MOST_PIXELS}", max_pixels) from None
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(key, f"{width} x {height} = {width * height}", max_pixels)
    try:
        image.load()
    except OSError as error:
        if "out of memory" in str(error):  # what Pillow's decoders say, which give no number
            raise MemoryError(str(error)) from error
        raise
    return image


def _too_large(key: str, pixels: str, max_pixels: int) -> BadRecord:
    return BadRecord(key, f"image of {pixels} pixels: at most {max_pixels} are read (max_pixels)")


def _unreadable(key: str, error: Exception) -> BadRecord:
    if isinstance(error, UnidentifiedImageError):  # whose text is an address in memory
        return BadRecord(key, f"unreadable image: of no known format ({', '.join(FORMATS)})")
    reason = " ".join(str(error).split()) or type(error).__name__
    return BadRecord(key, f"unreadable image: {reason}")


def _converted(image: Image.Image, data: bytes, key: str) -> np.ndarray:
    try:
        return rgb_pixels(image, data)
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(key, error) from error


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8 as in EXIF; 1, which is upright, if it is not to be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        return orientation if orientation in range(2, 9) else 1
    except MemoryError:
        raise
    except Exception:  # as many kinds as there are ways to damage it
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as they were seen; see EXIF 2.3, 4.6.4, Orientation."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
