"""Image bytes of every kind to upright RGB; damaged bytes to a BadRecord that says so."""

import io
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from cogview_jax.data.images import FILE_LIMIT, FORMATS, decode_image, read_image_file
from cogview_jax.data.records import BadRecord
from cogview_jax.runtime.errors import InputError

AVIF = [kind for kind in FORMATS if kind == "AVIF"]  # which older versions of Pillow lack


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG by hand; `rows` holds a zero and the samples of each row."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    image = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + image


def tiff(width: int, height: int, bits: int, samples: bytes, *, white=1, kind=1, count=1) -> bytes:
    """A TIFF by hand, little-endian and uncompressed: samples whole (kind 1), signed, or float."""
    short, long = (lambda value: struct.pack("<HH", value, 0)), (lambda v: struct.pack("<I", v))
    tags = [(256, short(width)), (257, short(height)), (258, short(bits)), (259, short(1))]
    tags += [(262, short(white)), (273, long(8)), (277, short(count)), (278, short(height))]
    tags += [(279, long(len(samples))), (339, short(kind))]
    head = b"II*\0" + long(8 + len(samples)) + samples + struct.pack("<H", len(tags))
    sizes = {273: 4, 279: 4}
    entries = [struct.pack("<HHI", tag, sizes.get(tag, 3), 1) + value for tag, value in tags]
    return head + b"".join(entries) + long(0)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_pixels_come_back(kind):
    pixels = noise(5, 7, 3)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(pixels), kind), "x"), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", *AVIF])
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


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_the_camera_is_obeyed(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(2, 3, 3)), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode_image(data, "x"), upright)
    assert (upright.shape == (3, 2, 3)) == (orientation > 4)


def test_of_several_frames_the_first_is_taken():
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    for kind in ("GIF", "PNG", "WEBP", "MPO"):
        data = encoded(first, kind, save_all=True, append_images=[second])
        pixels = decode_image(data, kind)
        assert pixels.shape == (6, 8, 3)
        assert np.abs(pixels.astype(int) - (250, 0, 0)).max() < 8, kind


# Grey of every depth, and what is 0, a quarter of the way up and the maximum in it.
@pytest.mark.parametrize(
    ("depth", "row", "key", "shown"),
    [
        (1, [0b01000000], 1, [0, 255]),
        (1, [0b01000000], 0, [255, 255]),
        (2, [0b00011100], 1, [0, 255, 255, 0]),
        (4, [0x02, 0xF0], 2, [0, 255, 255, 0]),
        (8, [0, 7, 255], 7, [0, 255, 255]),
        (8, [0, 7, 255], 0x100 + 7, [0, 255, 255]),  # only as many bits as the samples count
        (16, [0, 0, 3, 232, 3, 233, 255, 255], 1000, [0, 255, 3, 255]),
    ],
)
def test_the_transparent_grey_of_a_png_is_white(depth, row, key, shown):
    data = png(len(shown), 1, depth, 0, bytes([0, *row]), chunk(b"tRNS", struct.pack(">H", key)))
    np.testing.assert_array_equal(decode_image(data, "x")[0], [[value] * 3 for value in shown])


def test_the_transparent_colour_of_a_png_with_16_bits_is_white_and_no_other():
    colours = [(1000, 2000, 3000), (1000, 2000, 3001), (65535, 32768, 0)]
    row = b"\0" + struct.pack(">9H", *(value for colour in colours for value in colour))
    shown = [(255, 255, 255), (1000 // 256, 2000 // 256, 3001 // 256), (255, 128, 0)]
    data = png(3, 1, 16, 2, row, chunk(b"tRNS", struct.pack(">3H", *colours[0])))
    np.testing.assert_array_equal(decode_image(data, "x")[0], shown)


@pytest.mark.parametrize(("kind", "colour"), [(4, [1000]), (6, [1000, 40_000, 65_535])])
def test_alpha_of_16_bits_shows_white(kind, colour):
    row = b"\0" + struct.pack(f">{2 * len(colour) + 2}H", *colour, 65_535, *colour, 0)
    seen = [value // 256 for value in colour] * (4 - len(colour) if len(colour) == 1 else 1)
    decoded = decode_image(png(2, 1, 16, kind, row), "x")
    np.testing.assert_array_equal(decoded[0], [seen, [255, 255, 255]])


def test_greys_of_tiffs_keep_their_high_byte():
    samples = np.array([0, 256, 65535, 32768], "<u2").tobytes()
    for white, shown in ((1, [0, 1, 255, 128]), (0, [255, 254, 0, 127])):
        decoded = decode_image(tiff(2, 2, 16, samples, white=white), "x")
        assert decoded[..., 0].ravel().tolist() == shown
        assert (decoded == decoded[..., :1]).all()
    # 0, 0xfff, 0x800 and 0x010, in 12 bits each
    twelve = decode_image(tiff(2, 2, 12, bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])), "x")
    assert twelve[..., 0].ravel().tolist() == [0, 255, 128, 1]


@pytest.mark.parametrize(("kind", "type_"), [(1, "<u4"), (2, "<i4"), (3, "<f4")])
def test_samples_of_32_bits_are_a_bad_record(kind, type_):
    data = tiff(2, 2, 32, np.array([0, 1, 70_000, 2**30], type_).tobytes(), kind=kind)
    with pytest.raises(BadRecord, match="numbers of 32 bits, which have no agreed white"):
        decode_image(data, "x")


@pytest.mark.parametrize("mode", ["L", "LA", "CMYK", "RGBX", "P", "1"])
def test_tiffs_of_every_mode_have_the_colours_they_had(mode):
    grey = mode in ("L", "LA", "1")
    colour = (255, 255, 255) if grey else (204, 51, 153)  # in the palette, too
    image = Image.new("RGB", (4, 4), colour)
    image = image.convert("L").convert(mode) if grey else image.convert(mode)
    decoded = decode_image(encoded(image, "TIFF"), "x").astype(int)
    assert np.abs(decoded - colour).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", *AVIF])
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


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\n0 0 moveto\n%%EOF\n",
        b"P6 1 1 255\n\1\2\3",
        encoded(Image.new("RGB", (2, 2)), "ICO"),
        encoded(Image.new("RGB", (2, 2)), "PCX"),
        encoded(Image.new("RGB", (2, 2)), "TGA"),
    ],
    ids=["EPS", "PPM", "ICO", "PCX", "TGA"],
)
def test_formats_that_are_not_documented_are_not_decoded(data):
    with pytest.raises(BadRecord, match="of no known format"):
        decode_image(data, "called.png")


def jpeg_with_exif(payload: bytes, **options) -> bytes:
    data = encoded(Image.fromarray(noise(2, 3, 3)), "JPEG", quality=95, **options)
    payload = b"Exif\0\0" + payload
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def test_broken_metadata_costs_no_pixels():
    row, whole = b"\0" + bytes(range(12)), np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    oriented = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 0x112, 3, 1, 3, 0) + bytes(4)
    long = zlib.compress(bytes(2 << 20))
    broken = {
        "eXIf of garbage": chunk(b"eXIf", b"garbage-garbage"),
        "eXIf cut short": chunk(b"eXIf", b"II*\0\x08"),
        "profile of 2 MB": chunk(b"iCCP", b"icc\0\0" + long),
        "text of 2 MB": chunk(b"zTXt", b"note\0\0" + long),
        "text with a wrong checksum": chunk(b"tEXt", b"note\0text")[:-1] + b"?",
    }
    for name, part in broken.items():
        decoded = decode_image(png(4, 1, 8, 2, row, part), name)
        np.testing.assert_array_equal(decoded, whole, err_msg=name)
        # What can be read of it counts: this one lies on its head.
        decoded = decode_image(png(4, 1, 8, 2, row, part, chunk(b"eXIf", oriented)), name)
        if "eXIf" not in name:
            np.testing.assert_array_equal(decoded, whole[::-1, ::-1], err_msg=name)


def test_a_jpeg_whose_exif_block_is_broken_keeps_pixels_and_orientation():
    turned = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    text = struct.pack("<HHI4s", 0x11A, 2, 2, b"1\0\0\0")  # a resolution as text
    unit = struct.pack("<HHIHH", 0x128, 3, 1, 2, 0)
    data = jpeg_with_exif(b"II*\0\x08\0\0\0\3\0" + turned + text + unit + bytes(4))
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(data))
    plain = decode_image(encoded(Image.fromarray(noise(2, 3, 3)), "JPEG", quality=95), "x")
    np.testing.assert_array_equal(decode_image(data, "x"), np.rot90(plain, k=-1))
    np.testing.assert_array_equal(decode_image(jpeg_with_exif(b"II*\0\x08"), "x"), plain)


@pytest.mark.parametrize("segment", [b"\xff\xe0\0\x06JFIF", b"\xff\xee\0\x07Adobe"])
def test_a_jpeg_with_a_segment_that_is_cut_short_keeps_its_pixels(segment):
    data = encoded(Image.fromarray(noise(2, 3, 3)), "JPEG", quality=95)
    broken = data[:2] + segment + data[2:]
    np.testing.assert_array_equal(decode_image(broken, "x"), decode_image(data, "x"))


def test_metadata_that_is_left_out_does_not_change_colours():
    # APP14 says that the four channels are inverted, and must stay.
    text = struct.pack("<HHI4s", 0x11A, 2, 2, b"1\0\0\0")
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 0, 0)), "JPEG")
    unit = struct.pack("<HHIHH", 0x128, 3, 1, 2, 0)
    block = b"Exif\0\0II*\0\x08\0\0\0\2\0" + text + unit + bytes(4)
    at = data.index(b"\xff\xee")
    broken = data[:at] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[at:]
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(broken))
    np.testing.assert_array_equal(decode_image(broken, "x"), decode_image(data, "x"))


def in_a_process(program: str, given: bytes) -> list[str]:
    """The lines that a program of its own prints, with decode_image at hand."""
    imports = "import pickle, resource, sys\nfrom cogview_jax.data.images import *\n"
    imports += "from cogview_jax.runtime import faults\n"
    imports += "from cogview_jax.runtime.errors import SystemFault\n"
    command = [sys.executable, "-c", imports + textwrap.dedent(program)]
    return (
        subprocess.run(command, input=given, capture_output=True, check=True)
        .stdout.decode()
        .splitlines()
    )


def test_pixels_are_counted_before_they_take_memory():
    huge = 12_000, 12_000
    small = png(1, 1, 8, 2, bytes(4))
    header = struct.pack(">IIBBBBB", *huge, 8, 2, 0, 0, 0)
    cases = {
        "PNG": small[:8] + chunk(b"IHDR", header) + small[33:],
        "GIF": b"GIF89a" + struct.pack("<HH", *huge) + encoded(Image.new("P", (1, 1)), "GIF")[10:],
        "TIFF": tiff(*huge, 8, b"\0\0"),
        "BMP": b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 62, 0, 54, 40, *huge, 1, 24, 0, 0, 0, 0, 0, 0),
    }
    webp = encoded(Image.new("RGB", (4, 4)), "WEBP", lossless=True)
    size = struct.pack("<I", 11_999 | 11_999 << 14)
    cases["WebP"] = webp[:21] + size + webp[25:]
    program = """
        for name, data in pickle.load(sys.stdin.buffer).items():
            try: decode_image(data, name)
            except BadRecord as error: print(error)
            else: print(name, "was decoded")
        print([line for line in open("/proc/self/status") if "VmHWM" in line][0].split()[1])
    """
    *said, peak = in_a_process(program, pickle.dumps(cases))
    reason = "12000 x 12000 = 144000000 pixels: at most 100000000 are read (max_pixels)"
    assert said == [f"{name}: image of {reason}" for name in cases]
    assert int(peak) < 300_000  # kB, of which the pixels alone would be 432,000


def test_the_limit_of_pixels_is_the_largest_number_that_is_read():
    data = encoded(Image.new("RGB", (5, 4)))
    assert decode_image(data, "x", max_pixels=20).shape == (4, 5, 3)
    with pytest.raises(BadRecord, match="5 x 4 = 20 pixels: at most 19 are read"):
        decode_image(data, "x", max_pixels=19)


def test_too_little_memory_is_the_machines_fault_and_not_the_images():
    program = """
        data = sys.stdin.buffer.read()
        faults.PAUSES = (0.0, 0.0)
        limit = resource.getrlimit(resource.RLIMIT_AS)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), limit[1]))
        try: decode_image(data, "big")
        except SystemFault as error: print(error)
        resource.setrlimit(resource.RLIMIT_AS, limit)
        print(decode_image(data, "big").shape)
    """
    said = in_a_process(program, encoded(Image.new("RGB", (4000, 4000))))
    assert said == ["big: not enough memory (3 tries)", "(4000, 4000, 3)"]


def test_only_regular_files_of_some_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(InputError, match="expected a file, but this is a"):
            read_image_file(path)
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(FILE_LIMIT + 1)
    with pytest.raises(InputError, match=f"expected at most {FILE_LIMIT}"):
        read_image_file(tmp_path / "sparse.png")
