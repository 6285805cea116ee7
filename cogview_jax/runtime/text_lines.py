"""The lines of text files."""

import re

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile("\r\n|\n|\r")


def text_lines(data: bytes) -> list[str]:
    """The lines of a UTF-8 file, without their ends and without a byte order mark in front.

    A line ends where lines of files end: with a line feed, a carriage return, or both. Other
    characters that `str.splitlines` ends lines at, such as U+2028 or a form feed, belong to a line.

    Raises:
        ValueError: the bytes are no UTF-8; it says in which line the first such byte stands.
    """
    data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        lines = _LINE_END.split(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        before = _LINE_END.split(data[: error.start].decode("utf-8"))
        value = data[error.start]
        raise ValueError(f"line {len(before)} is no UTF-8 (byte 0x{value:02x})") from None
    # What stands behind the last end is a line only if it holds something.
    return lines if lines[-1] else lines[:-1]
