"""PNG and JPEG files without their metadata, for when that is broken and the pixels are not."""

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG = b"\xff\xd8"
_START_OF_SCAN = 0xDA
# APP1 to APP13, APP15 and comments. APP0 and APP14 say what the colours mean.
_JPEG_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}
#: Bytes of these two segments, without which they say nothing.
_SHORTEST = {0xE0: 16, 0xEE: 14}
_EXIF = b"Exif\0\0"


def bare_image(data: bytes) -> tuple[bytes, bytes] | None:
    """An encoded image reduced to what its pixels need, and its EXIF block.

    Profiles, texts and checksums of what is left out do not matter any more. What is damaged in
    the rest stays damaged.

    Args:
        data: a file.

    Returns:
        The file without metadata, and the bytes of its EXIF block, empty if there is none; None for
        files that are neither PNG nor JPEG, and for a JPEG that breaks off before its pixels.
    """
    if data.startswith(_PNG):
        return _bare_png(data)
    return _bare_jpeg(data) if data.startswith(_JPEG) else None


def _bare_png(data: bytes) -> tuple[bytes, bytes]:
    kept, exif, at = [_PNG], b"", len(_PNG)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name in _PNG_PIXELS:
            kept.append(data[at:end])
        elif name == b"eXIf" and data[end - 4 : end] == _checksum(data[at + 4 : end - 4]):
            exif = data[at + 8 : end - 4]
        at = end
    return b"".join(kept), exif


def _checksum(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def _bare_jpeg(data: bytes) -> tuple[bytes, bytes] | None:
    kept, exif, at = [_JPEG], b"", len(_JPEG)
    while at + 4 <= len(data):
        mark, kind, length = struct.unpack_from(">BBH", data, at)
        end = at + 2 + length
        if mark != 0xFF or length < 2:
            return None
        if kind == _START_OF_SCAN:
            return b"".join([*kept, data[at:]]), exif
        if kind not in _JPEG_METADATA and length >= _SHORTEST.get(kind, 0):
            kept.append(data[at:end])
        elif data.startswith(_EXIF, at + 4):
            exif = data[at + 4 : end]
        at = end
    return None
