"""Several files by one text, as shells and the webdataset library let one name them."""

import glob
import itertools
import os
import re
from collections.abc import Iterator

from cogview_jax.runtime.errors import InputError

#: The innermost braces of a text; their content, if it is a range; signs of a pattern.
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(\d{1,18}))?")
#: The most texts that braces may stand for.
_MOST = 100_000


def expanded(text: str) -> list[str]:
    """The paths and patterns that `text` stands for: cut at commas, braces written out.

    `{00000..00041}` counts with leading zeros, `{0..9..3}` in steps, and `{a,b}` names each. A text
    that is the path of something is taken as it is.

    Raises:
        InputError: braces stand for more than 100,000 texts.
    """
    if os.path.exists(text):
        return [text]
    found = itertools.chain.from_iterable(map(_written_out, _parts(text)))
    paths = list(itertools.islice(found, _MOST + 1))
    if len(paths) > _MOST:
        raise InputError(f"{text!r}: expected at most {_MOST} files")
    return paths


def is_pattern(path: str) -> bool:
    """Whether a path is a pattern, which any number of files may match, and no file itself."""
    return glob.has_magic(path) and not os.path.exists(path)


def matches(pattern: str) -> list[str]:
    """The files that match a pattern, sorted; `**` stands for any folders."""
    return sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))


def folder_of(path: str) -> str:
    """The absolute path of a folder, or that a file or all matches of a pattern lie in or below."""
    path = os.path.abspath(path)
    if is_pattern(path):
        plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.split(os.sep))
        path = os.sep.join(plain) or os.sep
    return path if os.path.isdir(path) else os.path.dirname(path)


def _parts(text: str) -> Iterator[str]:
    """`text` cut at the commas that stand in no braces."""
    depth = begin = 0
    for place, sign in enumerate(f"{text},"):
        depth += (sign == "{") - (sign == "}" and depth > 0)
        if sign == "," and (not depth or place == len(text)):
            if part := text[begin:place].strip():
                yield part
            begin = place + 1


def _written_out(text: str) -> Iterator[str]:
    for found in _BRACES.finditer(text):
        if choices := _choices(found[1]):
            before, after = text[: found.start()], text[found.end() :]
            for choice in choices:
                yield from _written_out(f"{before}{choice}{after}")
            return
    yield text


def _choices(content: str) -> Iterator[str] | list[str] | None:
    """What braces stand for; None if they are only braces, as in a shell."""
    if bounds := _RANGE.fullmatch(content):
        first, last, step = int(bounds[1]), int(bounds[2]), int(bounds[3] or 1) or 1
        width = max(map(len, bounds.group(1, 2))) if any(map(_is_padded, bounds.group(1, 2))) else 0
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return (f"{number:0{width}d}" for number in numbers)
    return content.split(",") if "," in content else None


def _is_padded(number: str) -> bool:
    digits = number.lstrip("-")
    return len(digits) > 1 and digits[0] == "0"
