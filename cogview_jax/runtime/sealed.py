"""Descriptions: JSON objects that carry the hash of their own content.

A flipped bit in a number leaves JSON that reads well and says something else; the seal tells.
"""

import hashlib
import json
import os
from typing import Any

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_json

#: Where the hash of the rest of an object stands.
SEAL = "content_sha256"


def sealed(description: dict[str, Any]) -> dict[str, Any]:
    """`description` with the hash of its content under `SEAL`."""
    return description | {SEAL: seal_of(description)}


def seal_of(description: dict[str, Any]) -> str:
    """The SHA-256 of JSON values: neither their order nor how they are written down counts."""
    rest = {key: value for key, value in description.items() if key != SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object that a file holds, its seal not yet compared.

    Raises:
        InputError: it holds none: the path and what is wrong.
        OSError: it is not there, or cannot be read.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged: expected a JSON object, got {type(found).__name__}")
    return found


def check_seal(description: dict[str, Any], path: str | os.PathLike) -> None:
    """Refuses a description that was changed; one of before there were seals has none.

    Raises:
        InputError: the content is not what the seal was made of.
    """
    try:
        whole = description.get(SEAL) in (None, seal_of(description))
    except RecursionError:
        raise InputError(f"{path}: damaged: nested too deeply") from None
    if not whole:
        raise InputError(
            f"{path}: damaged: it was changed after it was written (its {SEAL} does not fit)"
        )


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
    """`read_object` and `check_seal` in one."""
    description = read_object(path)
    check_seal(description, path)
    return description
