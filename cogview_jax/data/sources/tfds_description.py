"""Checks the description in a prepared TFDS folder before TFDS imports what it names.

A description names a Python class for each feature, and TFDS imports the modules of those that it
does not know. Without this check a folder from elsewhere could choose what code is run.
"""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import read_json

_FILES = ("features.json", "dataset_info.json")
_OWN = "tensorflow_datasets."
# TFDS writes the first today and once wrote the last; protocol buffers may spell it as the second.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def check_description(folder: str | os.PathLike) -> None:
    """Refuses a folder whose features are not all of TFDS's own classes, before any import.

    Raises:
        InputError: a feature is of another class, the description is damaged, or the folder holds
            a pipe or a device, which TFDS would wait for.
        SystemFault: the machine cannot read it.
    """
    for name in retried(lambda: os.listdir(folder), str(folder)):
        path = Path(folder) / name
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path}: expected files and folders only, in a prepared data set")
    for path in (Path(folder) / name for name in _FILES):
        try:
            description = retried(functools.partial(read_json, path), str(path))
            foreign = {name for name in _class_names(description) if not name.startswith(_OWN)}
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None
        except RecursionError:
            raise InputError(f"{path}: damaged: nested too deeply") from None
        if not isinstance(description, dict):
            raise InputError(f"{path}: damaged: expected a JSON object")
        if foreign:
            raise InputError(
                f"{path}: features of {', '.join(map(repr, sorted(foreign)))}: only classes of"
                f" {_OWN.rstrip('.')} itself are imported"
            )


def _class_names(value: Any) -> Iterator[str]:
    """Yields every class name at any depth of a description, and in texts that hold JSON."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield from (value[k] for k in _CLASS_KEYS if isinstance(value.get(k), str))
            stack += value.values()
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            try:
                stack.append(json.loads(value))
            except ValueError:  # The text only begins like JSON.
                continue
