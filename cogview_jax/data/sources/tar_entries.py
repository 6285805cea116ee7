"""The entries of an uncompressed tar: where the bytes of each file begin and how many they are.

The format is that of POSIX.1-2017 (pax, "pax Interchange Format" and "ustar Interchange Format")
with the extensions of GNU tar (its manual, "Basic Tar Format"): long names, sizes in base 256,
sparse files. A tar is read in its order and only where headers and short texts stand, so that an
image costs no read. Names are what they are, texts: none of them is ever opened.
"""

from collections.abc import Iterator
from typing import NamedTuple

from cogview_jax.data.windowed_file import WindowedFile
from cogview_jax.runtime.errors import InputError

BLOCK = 512
#: The most bytes of a name or of a pax header.
_NAME_LIMIT = 1 << 20
#: Of what is not a file, the words for its type.
_KINDS = {
    **dict.fromkeys(b"12", "links"),
    **dict.fromkeys(b"346", "devices and pipes"),
    ord("5"): "folders",
    ord("S"): "sparse files",
}
#: Types of files: "0", as it was written once, and "7", which stands in the file in one piece.
_FILES = b"0\x007"
#: Types that have no bytes behind their header, whatever its size says.
_EMPTY = b"123456"
#: How compressed files begin, and what unpacks them.
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


class Entry(NamedTuple):
    """A file in a tar, or something else (`kind` says what, and is empty for files)."""

    name: str
    kind: str
    offset: int
    size: int


class TarFile(WindowedFile):
    """The bytes of a tar; `entries` reads them once from the first to the last."""

    #: Whether the empty block was met that stands behind the last entry.
    ended = False

    def entries(self) -> Iterator[Entry]:
        """Yields all entries in their order.

        Raises:
            InputError: the file is no tar, is compressed, is damaged or breaks off.
            SystemFault: the machine cannot read it.
        """
        position, end = 0, self.size
        long_name, pax = "", {}
        while position < end:
            header = self.read(position, BLOCK)
            if len(header) < BLOCK:
                raise self._broken_off(f"the header at byte {position}", BLOCK)
            if header[0] == 0 and not any(header):
                self.ended = True
                return  # what stands behind an empty block is no part of the tar
            if not _is_header(header):
                raise self._no_header(header, position)
            kind, data = header[156], position + BLOCK
            if kind == ord("S"):  # maps of a sparse file that are too long for its header
                data = self._behind_maps(header, data)
            size = _number(header[124:136])
            if kind in b"xLKg":
                size = self._whole(size, data, position)
                if kind == ord("x"):
                    pax = self._pax(data, size, position)
                elif kind == ord("L"):
                    long_name = _text(self.read(data, size))
                position = data + _padded(size)
                continue
            name = pax.get(b"path", long_name) or _name(header)
            if b"size" in pax and pax[b"size"].isdecimal():
                size = int(pax[b"size"])
            if kind in _EMPTY:
                size = 0
            size = self._whole(size, data, position, name)
            yield Entry(name, _kind(kind, name, pax), data, size)
            position, long_name, pax = data + _padded(size), "", {}
        if not end:
            raise InputError(f"{self.path}: expected a tar, this file is empty")

    def _behind_maps(self, header: bytes, data: int) -> int:
        more = header[482]
        while more:
            block = self.read(data, BLOCK)
            data += BLOCK
            more = len(block) == BLOCK and block[504]
        return data

    def _whole(self, size: int, data: int, position: int, name: str = "") -> int:
        """`size`, once so many bytes are known to be there."""
        there = self.size - data
        if size < 0 or (not name and size > _NAME_LIMIT):
            raise self._damaged(position, f"an entry of {size} bytes")
        if _padded(size) > there:
            what = f"the entry {name!r}" if name else "a header"
            raise self._broken_off(f"{what} at byte {position}", data + _padded(size) - position)
        return size

    def _pax(self, data: int, size: int, position: int) -> dict:
        """The records of a pax header, "LENGTH KEY=VALUE" and a line feed each."""
        found: dict = {}
        rest = self.read(data, size).rstrip(b"\0")
        while rest:
            length, space, _ = rest.partition(b" ")
            if not (space and length.isdigit() and len(length) < int(length) <= len(rest)):
                raise self._damaged(position, "a pax header that cannot be read")
            key, _, value = rest[len(length) + 1 : int(length) - 1].partition(b"=")
            found[key] = _text(value) if key == b"path" else value.decode("latin-1")
            rest = rest[int(length) :]
        return found

    def _broken_off(self, what: str, size: int) -> InputError:
        return InputError(
            f"{self.path}: breaks off: {what} takes {size} bytes, and the file ends at byte"
            f" {self.size}; get it anew, or leave it out"
        )

    def _damaged(self, position: int, what: str) -> InputError:
        return InputError(
            f"{self.path}: damaged at byte {position}: {what}; get it anew, or leave it out"
        )

    def _no_header(self, header: bytes, position: int) -> InputError:
        if position:
            return self._damaged(position, "expected the header of an entry")
        for begin, (name, unpack) in _COMPRESSED.items():
            if header.startswith(begin):
                return InputError(
                    f"{self.path}: compressed with {name}: records can be found in an uncompressed"
                    f" tar only; unpack it with `{unpack}`"
                )
        return InputError(f"{self.path}: expected a tar, this is none")


def _is_header(header: bytes) -> bool:
    """Whether the sum that a header states is that of its bytes, its own counted as blanks."""
    stated, own = _number(header[148:156]), header[148:156]
    total = sum(header.replace(b"\0", b"")) - sum(own) + 8 * 32  # zeros are most of a header
    if stated == total:
        return True
    high = sum(byte > 127 for byte in header) - sum(byte > 127 for byte in own)
    return stated == total - 256 * high  # some writers added signed bytes


def _number(field: bytes) -> int:
    """The number in a field of a header, octal or, with its highest bit set, in base 256.

    It is -1 where none can be read.
    """
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0x80 else -1
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> str:
    name = _text(header[:100])
    if header[345] and header[257:263] == b"ustar\0":
        return f"{_text(header[345:500])}/{name}"
    return name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _kind(kind: int, name: str, pax: dict) -> str:
    """What an entry is, in words; empty if it is a file."""
    if kind in _FILES:
        if name.endswith("/"):
            return _KINDS[ord("5")]
        sparse = any(key.startswith(b"GNU.sparse") for key in pax)
        return _KINDS[ord("S")] if sparse else ""
    return _KINDS.get(kind, "of unknown types")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
