"""Image bytes of every kind to upright RGB; damaged bytes to a BadRecord that says so."""

import io

import numpy as np
import pytest
from PIL import Image

from cogview_jax.data.images import decode_image
from cogview_jax.data.records import BadRecord


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_pixels_come_back(kind):
    pixels = noise(5, 7, 3)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(pixels), kind), "x"), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_pixels_are_close(kind):
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    result = decode_image(encoded(Image.fromarray(flat), kind), "x")
    assert result.dtype == np.uint8
    assert np.abs(result.astype(int) - flat).max() <= 4


def test_transparency_shows_white_in_every_mode():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    expected = np.full((2, 2, 3), 255, np.uint8)
    expected[0, 0] = (10, 20, 30)
    image = Image.fromarray(rgba)
    np.testing.assert_array_equal(decode_image(encoded(image), "x"), expected)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([10, 20, 30, 77, 77, 77])
    palette.putpixel((0, 0), 0)
    np.testing.assert_array_equal(decode_image(encoded(palette, transparency=1), "x"), expected)


def test_sixteen_bit_grey_keeps_its_high_byte():
    grey = np.array([[0, 256, 65535]], np.uint16)
    result = decode_image(encoded(Image.fromarray(grey)), "x")
    np.testing.assert_array_equal(result, [[[0] * 3, [1] * 3, [255] * 3]])


def test_cmyk_becomes_rgb():
    result = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), "x")
    assert result.shape == (8, 8, 3)
    assert result.min() > 250


def test_orientation_of_the_camera_is_obeyed():
    pixels = noise(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned clockwise by a quarter
    data = encoded(Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(decode_image(data, "x"), np.rot90(pixels, k=-1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_images_are_bad_records(kind):
    data = encoded(Image.fromarray(noise(32, 32, 3)), kind)
    for part in (data[: len(data) // 2], data[:12], b""):
        with pytest.raises(BadRecord, match="a/1: unreadable image") as caught:
            decode_image(part, "a/1")
        assert caught.value.key == "a/1"
        assert "\n" not in caught.value.reason


def test_other_bytes_are_a_bad_record():
    with pytest.raises(BadRecord, match="unreadable image"):
        decode_image(b"<html>404</html>", "x")
