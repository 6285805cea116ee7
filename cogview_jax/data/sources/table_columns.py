"""The columns of a table that hold images and captions: Parquet files and Arrow files have such.

This file needs pyarrow, which `require_pyarrow` of `tables` looks for.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import types

from cogview_jax.data.images import FILE_LIMIT
from cogview_jax.data.record_index import NO_PLACE
from cogview_jax.data.record_index_writer import IndexPart
from cogview_jax.data.records import BadRecord, clean_captions
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import is_passing, reason, system_error

#: Where captions stand mostly; the first that there is is taken.
USUAL_CAPTIONS = ("caption", "captions", "text", "texts", "txt", "prompt", "description")
#: How columns of bytes are called that hold images mostly.
_USUAL_IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
#: The columns that img2dataset adds and that tell whether it could fetch an image.
_STATUS, _ERROR, _FETCHED = "status", "error_message", "success"
#: The captions of a record may have so many letters, and a message names so many columns.
_TEXT_LIMIT, _NAMED = 1 << 20, 40
#: Under this name the notes of an index keep the columns of the first file without captions, and
#: what is wrong with its first bad record.
COLUMNS = "columns"


@dataclass(frozen=True)
class TableColumns:
    """The columns that are read.

    Attributes:
        image: that of the images.
        nested: whether it is a struct whose field "bytes" holds the image.
        captions: those of captions, texts or lists of texts.
        status: that which tells whether an image was fetched; empty where there is none.
    """

    image: str
    nested: bool
    captions: tuple[str, ...]
    status: str

    @property
    def leaf(self) -> str:
        """The column of bytes in a Parquet file, where each field of a struct is one."""
        return f"{self.image}.bytes" if self.nested else self.image

    @property
    def texts(self) -> list[str]:
        """The columns of texts that are read."""
        return list(dict.fromkeys([*self.captions, *filter(None, [self.status])]))

    def texts_of(self, batch: pa.RecordBatch) -> Iterator[list[str] | str | None]:
        """Yields the captions of each row of a batch.

        Instead of them there is a reason where they cannot be read, and None where the row says
        that its image was not fetched.
        """
        columns = [_values(batch.column(name)) for name in self.captions]
        statuses = _values(batch.column(self.status)) if self.status else None
        for row in range(batch.num_rows):
            if statuses is not None and statuses[row] != _FETCHED:
                yield None
            else:
                yield _joined([column[row] for column in columns])


def find_columns(
    path: str, schema: pa.Schema, image_key: str, caption_keys: Iterable[str]
) -> TableColumns:
    """The columns that hold images and captions; `captions` may be empty where none is asked for.

    Raises:
        InputError: a named column is not there or of another type, or no column holds images.
    """
    image = image_key or _usual_image(path, schema)
    kind = schema.field(_index(path, schema, image)).type
    nested = _is_nested(kind)
    if not nested and not _is_bytes(kind):
        if _is_text(kind):
            raise _addresses(path, image)
        raise InputError(
            f"{path}: column {image!r} is {kind}: expected bytes of images, or a struct of bytes"
            f" and path; columns are {_described(schema)}"
        )
    captions = tuple(caption_keys)
    for name in captions:
        kind = schema.field(_index(path, schema, name)).type
        if not _is_texts(kind):
            raise InputError(
                f"{path}: column {name!r} is {kind}: expected a text or a list of texts; columns"
                f" are {_described(schema)}"
            )
    if not captions:
        usual = [name for name in USUAL_CAPTIONS if _holds_texts(schema, name)]
        captions = tuple(usual[:1])
    fetched = not nested and all(_holds_texts(schema, name) for name in (_STATUS, _ERROR))
    return TableColumns(image, nested, captions, _STATUS if fetched else "")


def note_columns(part: IndexPart, schema: pa.Schema, columns: TableColumns) -> None:
    """Notes the columns of a table that has no captions, for the message of its source."""
    if not columns.captions:
        part.findings.notes.setdefault(COLUMNS, _described(schema))


def add_row(
    part: IndexPart, row: int, place: tuple[int, int] | None, texts: list[str] | str | None
) -> None:
    """Adds a row to the part of an index; it is called by its number.

    Args:
        part: that of its file.
        row: its number in the file.
        place: where its image begins and how many bytes it has; None where there is none.
        texts: its captions, why they cannot be read, or None where the image was not fetched.
    """
    key = str(row)
    if texts is None:
        part.findings.ignored.add("rows whose image could not be fetched (status)", f"row {row}")
        return
    offset, size = place or (0, 0)
    try:
        if isinstance(texts, str):
            raise BadRecord(key, texts)
        if place is None:
            raise BadRecord(key, "no image: its bytes are null")
        if not 0 < size <= FILE_LIMIT and size != NO_PLACE:
            raise BadRecord(key, f"image of {size} bytes: expected 1 to {FILE_LIMIT}")
        captions = clean_captions(texts, key, required=False)
    except BadRecord as error:
        part.add_bad(key, error.reason)
    else:
        part.add(key, captions, offset, size)


@contextlib.contextmanager
def arrow_errors(path: str, kind: str) -> Iterator[None]:
    """Turns what pyarrow raises in the block into InputError or SystemFault.

    Args:
        path: the file.
        kind: what it should be: "a Parquet file".
    """
    try:
        yield
    except (InputError, SystemFault):
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        found = error if isinstance(error, MemoryError) else system_error(error)
        if found is not None and is_passing(found):
            raise SystemFault(f"{path}: {reason(found)}") from error
        if found is not None:
            raise InputError(f"{path}: {reason(found)}") from None
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: damaged, or not {kind} ({first})") from None


def _usual_image(path: str, schema: pa.Schema) -> str:
    """The column of images, where none is named."""
    for field in schema:
        if _is_nested(field.type):
            return field.name
    found = [field.name for field in schema if _is_bytes(field.type)]
    usual = [name for name in _USUAL_IMAGES if name in found]
    if usual or len(found) == 1:
        return (usual or found)[0]
    if found:
        raise InputError(
            f"{path}: {len(found)} columns of bytes ({', '.join(found)}): name that of the images"
            " as data.source.image_key"
        )
    for field in schema:
        if _is_text(field.type) and "url" in field.name.lower():
            raise _addresses(path, field.name)
    raise InputError(f"{path}: no column holds images; columns are {_described(schema)}")


def _addresses(path: str, name: str) -> InputError:
    return InputError(
        f"{path}: column {name!r} holds texts, such as addresses of images, and no images: fetch"
        f" them first, as `img2dataset --input_format parquet --url_col {name} --output_format"
        " webdataset` does"
    )


def _index(path: str, schema: pa.Schema, name: str) -> int:
    if schema.names.count(name) != 1:
        many = "several columns" if name in schema.names else "no column"
        raise InputError(f"{path}: {many} {name!r}; columns are {_described(schema)}")
    return schema.names.index(name)


def _described(schema: pa.Schema) -> str:
    columns = [f"{field.name} ({field.type})" for field in schema]
    more = len(columns) - _NAMED
    return ", ".join(columns[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _holds_texts(schema: pa.Schema, name: str) -> bool:
    return schema.names.count(name) == 1 and _is_texts(schema.field(name).type)


def _is_nested(kind: pa.DataType) -> bool:
    if not types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    return _is_bytes(kind.field("bytes").type)


def _is_bytes(kind: pa.DataType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_texts(kind: pa.DataType) -> bool:
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return _is_text(kind.value_type if any(is_kind(kind) for is_kind in lists) else kind)


def _values(column: pa.Array) -> list:
    """The values of a column; an error in the place of each that is no UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(each) for each in column]


def _value(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _joined(values: list) -> list[str] | str:
    """The captions of a row, or why they cannot be read."""
    texts: list[str] = []
    for value in values:
        if isinstance(value, UnicodeDecodeError):
            return "caption is not UTF-8"
        found = value if isinstance(value, list) else [value]
        texts += [text for text in found if text is not None]
    letters = sum(map(len, texts))
    return texts if letters <= _TEXT_LIMIT else f"captions of {letters} letters"
