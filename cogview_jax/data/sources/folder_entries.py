"""The entries of listings of images: which file each names, and what it says about it."""

import csv
import io
import json
import os
from collections.abc import Sequence
from typing import Any

from cogview_jax.data.images import FILE_LIMIT, read_image_file
from cogview_jax.data.records import BadRecord, is_unicode
from cogview_jax.data.remote.addresses import is_address, joined
from cogview_jax.data.remote.failures import NotThere
from cogview_jax.data.remote.files import read_whole
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason

#: A line of a listing may have at most so many bytes.
LINE_LIMIT = 1 << 20
#: What a caption is called in an entry; the first that there is is taken.
_USUAL = ("captions", "caption", "text", "prompt")


def parse_line(
    number: int,
    line: bytes,
    listing: str,
    *,
    columns: Sequence[str] = (),
    caption_fields: Sequence[str] = (),
) -> tuple[str, list[str]]:
    """Returns the file, within the folder of the listing, and the captions of one of its lines.

    Args:
        number: that of the line.
        line: a JSON object, or a row of a CSV file.
        listing: the path of the listing within the folder of the data, in which keys of records
            are paths, too.
        columns: of the CSV file; empty for JSON.
        caption_fields: the fields that hold captions. If it is empty, they are the usual ones.

    Raises:
        BadRecord: the line is malformed, or its file is not within the folder of the listing.
    """
    where = f"{listing}:{number}"
    if len(line) > LINE_LIMIT:
        raise BadRecord(where, f"a line of {len(line)} bytes: expected at most {LINE_LIMIT}")
    try:
        entry = _row(line, columns) if columns else json.loads(line)
    except RecursionError:
        raise BadRecord(where, "malformed line: nested too deeply") from None
    except (ValueError, csv.Error) as error:  # The line is no JSON, no row, or not UTF-8.
        raise BadRecord(where, f"malformed line: {error}") from None
    file = entry.get("file", entry.get("file_name")) if isinstance(entry, dict) else None
    if not isinstance(file, str):
        raise BadRecord(where, 'expected an object with "file", the path of an image')
    check_name(file, where, '"file"' if "file" in entry else '"file_name"', listing)
    values = [entry[key] for key in caption_fields or _USUAL if entry.get(key) is not None]
    texts = _flat(values if caption_fields else values[:1])
    if not all(isinstance(text, str) for text in texts):
        key = os.path.join(os.path.dirname(listing), file)
        raise BadRecord(key, "a caption must be a text or a list of texts")
    return file, texts


def _flat(value: list[Any]) -> list[Any]:
    """What is in a list and in the lists in it, in order, however deep."""
    found: list[Any] = []
    rest: list[Any] = [value]
    while rest:
        each = rest.pop()
        if isinstance(each, list):
            rest += reversed(each)
        else:
            found.append(each)
    return found


def csv_columns(line: bytes) -> list[str]:
    """The names in the first line of a CSV file; none where it is no such line."""
    try:
        return next(csv.reader(io.StringIO(line.decode(), newline="")), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def check_columns(
    path: str, columns: Sequence[str], caption_fields: Sequence[str], *, required: bool
) -> None:
    """InputError unless the columns of a CSV file have the captions that are asked for.

    Args:
        path: that of the file.
        columns: its columns; empty if it is no CSV file.
        caption_fields: those of captions, if not the usual ones.
        required: whether there have to be captions.
    """
    missing = [key for key in caption_fields if key not in columns]
    if columns and missing:
        raise InputError(f"{path}: no column {missing[0]!r}; columns are {', '.join(columns)}")
    if columns and required and not caption_fields and not {*columns} & {*_USUAL}:
        raise InputError(
            f"{path}: no column of captions, as {', '.join(_USUAL)}: name it as"
            f" data.source.caption_fields; columns are {', '.join(columns)}"
        )


def check_name(file: str, where: str, field: str, listing: str) -> None:
    """BadRecord unless `file`, of the `field` of an entry, can be a file within a folder."""
    if "\0" in file or not is_unicode(file):
        raise BadRecord(where, f"{field} {file!r} is no name of a file")
    if os.path.isabs(file) or os.pardir in file.split("/"):
        raise BadRecord(
            os.path.join(os.path.dirname(listing), file),
            f"{field} leads out of the folder: expected a path within that of {listing}",
        )


def read_listed(root: str, name: str, key: str, listing: str) -> bytes:
    """The bytes of an image that a listing names.

    Args:
        root: the folder of the images, or its address.
        name: the path of the image within it, see `check_name`.
        key: the record's.
        listing: whose folder no link may lead out of; empty if links may lead anywhere.

    Raises:
        BadRecord: it is missing, cannot be read, or lies outside the folder.
        SystemFault: the machine cannot read it.
    """
    if is_address(root):
        return _fetched(joined(root, name, of_listing=True), key)
    path = os.path.join(root, name)
    if listing and not _within(os.path.realpath(path), os.path.realpath(root)):
        raise BadRecord(key, f"a link leads out of the folder of {listing}")
    try:
        return read_image_file(path)
    except (InputError, OSError) as error:
        raise BadRecord(key, why_unreadable("image", path, error)) from None


def _fetched(address: str, key: str) -> bytes:
    try:
        return read_whole(address, FILE_LIMIT)
    except NotThere:
        raise BadRecord(key, "image file not found") from None


def why_unreadable(what: str, path: str, error: Exception) -> str:
    """Returns why the file of an image or of its captions cannot be read."""
    if isinstance(error, FileNotFoundError):
        why = "not found"
    elif isinstance(error, InputError):  # Its message begins with the path.
        why = str(error).removeprefix(f"{path}: ")
    else:
        why = reason(error)
    return f"{what} file {os.path.basename(path)}: {why}"


def _within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _row(line: bytes, columns: Sequence[str]) -> dict[str, Any]:
    """A row of a CSV file by its columns; ValueError if it has not as many fields."""
    fields = next(csv.reader(io.StringIO(line.decode(), newline=""), strict=True), [])
    if len(fields) != len(columns):
        raise ValueError(f"{len(fields)} fields: expected {len(columns)}, as the first line has")
    entry: dict[str, Any] = dict(zip(columns, fields, strict=True))
    return entry | {"captions": [entry["captions"]]} if "captions" in entry else entry
