"""The lines of a text file, which end where files' lines end."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def byte_lines(data: bytes) -> list[bytes]:
    r"""The lines of a file, without their ends and without a byte order mark.

    A line ends at \n, \r\n or \r, and nowhere else: `str.splitlines` would also end one at a form
    feed, U+0085 and U+2028, which texts of people contain.
    """
    return data.removeprefix(_BYTE_ORDER_MARK).splitlines()


def text_lines(data: bytes) -> list[str]:
    """The lines of a UTF-8 file; see `byte_lines`.

    Raises:
        UnicodeDecodeError: the bytes are not UTF-8.
    """
    return [line.decode("utf-8") for line in byte_lines(data)]
