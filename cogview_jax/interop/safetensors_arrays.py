"""Arrays in a safetensors file: their types, and a writer that holds one of them at a time."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

#: safetensors' names of the types that arrays may have.
TYPES = {
    **{"F64": np.dtype("float64"), "F32": np.dtype("float32"), "F16": np.dtype("float16")},
    **{"BF16": np.dtype(ml_dtypes.bfloat16), "I32": np.dtype("int32")},
}
_NAMES = {dtype: name for name, dtype in TYPES.items()}


def write_arrays(
    file: Path,
    shapes: Mapping[str, Any],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Writes named arrays; the library's own writer needs all of them in memory.

    Args:
        file: where to.
        shapes: the shape and the dtype of every array, by its name.
        arrays: every name and its array, in any order and any order of memory.
        metadata: of the file.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # The widest types first, so that every array begins at a multiple of its type's size.
    for name in sorted(shapes, key=lambda name: (-np.dtype(shapes[name].dtype).itemsize, name)):
        shape, dtype = shapes[name].shape, np.dtype(shapes[name].dtype)
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    with open(file, "wb") as opened:
        opened.write(len(described).to_bytes(8, "little") + described)
        start = opened.tell()
        opened.truncate(start + end)
        for name, array in arrays:
            opened.seek(start + header[name]["data_offsets"][0])
            opened.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
