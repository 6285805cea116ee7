"""The fields of a request, from JSON or a form, each of the type that is expected."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from cogview_jax.runtime.config import closest
from cogview_jax.serving.api_error import ApiError

#: Files and other fields of a form, and bytes of one that is no file.
MOST_FILES, MOST_FIELDS, FIELD_BYTES = 16, 64, 1 << 16


class Fields:
    """The fields of a request by name.

    Every method raises ApiError, which names the field, where a value is none of those expected.
    """

    def __init__(self, values: Mapping[str, Any], known: Collection[str], form: bool = False):
        """`values` of a form are texts, whatever they mean."""
        self.form = form
        self.values = {name: value for name, value in values.items() if value is not None}
        for name in self.values:
            if name not in known:
                advice = closest(name, known)
                # JSON can escape half a character, which no response can be encoded with.
                param = name[:100].encode(errors="replace").decode()
                raise ApiError(
                    400, f"unknown field {name[:100]!r}; {advice}", param, "unknown_parameter"
                )

    def text(self, name: str, default: str | None = None) -> str:
        """A text; without a default it has to be there."""
        value = self.values.get(name, default)
        if value is None:
            raise ApiError(400, f"{name} is missing", name, "missing_required_parameter")
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number from `least` to `most`."""
        value = self.values.get(name, default)
        expected = f"a whole number from {least} to {most}"
        if self.form and isinstance(value, str):
            if not value.removeprefix("-").isdecimal() or len(value) > 20:
                raise self._wrong(name, value, expected)
            value = int(value)
        if isinstance(value, float) and value.is_integer():  # JSON has no other kind of number
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(name, value, expected)
        return value

    def number(self, name: str) -> float | None:
        """A number, None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        kinds = (int, float, str) if self.form else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self._wrong(name, value, "a number")
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise self._wrong(name, value, "a number") from None

    def flag(self, name: str) -> bool:
        """True or false, which is the default."""
        value = self.values.get(name, False)
        if self.form and isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower(), value)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """One of a few texts."""
        value = self.text(name, default)
        if value not in choices:
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return value

    @staticmethod
    def _wrong(name: str, value: Any, expected: str) -> ApiError:
        return ApiError(400, f"{name} {repr(value)[:100]}: expected {expected}", name)


async def json_fields(request: Request, known: Collection[str]) -> Fields:
    """The fields of a body that is a JSON object."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type {kind[:100]!r}: expected application/json")
    try:
        values = json.loads(await request.body(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is no JSON") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body is no JSON object")
    return Fields(values, known)


async def form_fields(
    request: Request, known: Collection[str], files: Collection[str]
) -> tuple[Fields, dict[str, list[bytes]]]:
    """The fields of a multipart form, and the bytes of its files: a list by field.

    What a file is called plays no role. `image[]`, as clients name a list, is `image`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(415, f"content-type {kind[:100]!r}: expected multipart/form-data")
    values: dict[str, Any] = {}
    found: dict[str, list[bytes]] = {name: [] for name in files}
    form = request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES)
    async with form as parts:
        for name, value in parts.multi_items():
            name = name.removesuffix("[]")
            if not isinstance(value, UploadFile):
                if name in values:
                    raise ApiError(400, f"{name[:100]}: it is there twice", name[:100])
                values[name] = value
            elif name in found:
                found[name].append(await value.read())
            else:
                raise ApiError(400, f"unknown file {name[:100]!r}; {closest(name, files)}", name)
    return Fields(values, known, form=True), found


def _no_number(name: str) -> None:
    raise ValueError(name)
