"""What a safetensors file of this project says of itself, in its metadata."""

import json
from pathlib import Path
from typing import Any

import safetensors

from cogview_jax.runtime.errors import InputError

#: The entry of a file's metadata that describes what it holds, as JSON.
DESCRIPTION = "cogview_jax"


def read_metadata(file: Path) -> dict[str, Any]:
    """What the metadata of a file say of what it holds.

    Raises:
        InputError: they say nothing, or there is no such file.
    """
    if not file.is_file():
        raise InputError(f"no safetensors file at {file}")
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(DESCRIPTION)
        if text is None:
            raise InputError(
                f"{file} does not say what it holds: expected metadata {DESCRIPTION!r}, as this"
                " program writes"
            )
        found = json.loads(text)
    except (safetensors.SafetensorError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} is no safetensors file of a bundle ({reason})") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: its description is no section")
    return found
