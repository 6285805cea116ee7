"""Pickles of numpy arrays, read without unpickling freely.

Reading builds arrays of numbers, and dicts of such, and nothing else: everything else that a
pickle may ask for is refused by its name, so no file can make this program run anything. An array
shows bytes that are in the file; none is allocated by its shape.
"""

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.interop.torch_format import opcodes
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_regular

#: Of a file, the most bytes that are read: VGG-16 without its classifier has 59 MB.
LIMIT = 1 << 30
#: The types an array of weights may have, by their codes in a pickle, and one of ids.
TYPES = ("f2", "f4", "f8")
INTEGERS = tuple(f"{kind}{size}" for kind in "iu" for size in (2, 4, 8))
#: Axes of an array.
AXES = 8
#: Where numpy keeps its functions: before its version 2, and since.
_CORES = ("numpy.core", "numpy._core")


def read_numpy_pickle(path: Path | str) -> dict[str, Any]:
    """The tree in a pickle: dicts within dicts, by texts, of read-only arrays.

    Raises:
        InputError: it is no pickle, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file at {path}")
    data = read_regular(path, LIMIT)
    try:
        # How many instructions there are and what they nest, before any is run.
        _, end = opcodes.followed(data)
        return _arrays(_Unpickler(io.BytesIO(data[:end])).load(), set())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can end in any of them
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: its pickle cannot be read ({type(error).__name__}: {reason})"
        ) from error


def unpickled_integers(data: bytes) -> np.ndarray:
    """The array of whole numbers that is pickled in some bytes.

    Raises:
        InputError: they are no pickle, damaged, or hold anything else.
    """
    try:
        _, end = opcodes.followed(data)
        value = _Unpickler(io.BytesIO(data[:end]), INTEGERS).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can end in any of them
        raise InputError(f"its pickle cannot be read ({type(error).__name__})") from error
    value = value.array if isinstance(value, _Array) else value
    if not isinstance(value, np.ndarray):
        raise InputError("its pickle holds no numpy array")
    return value


class _Type:
    """The type of an array's numbers: what a pickle calls numpy.dtype for."""

    def __init__(self, name: Any = None, types: Sequence[str] = TYPES):
        if isinstance(name, bytes):
            name = name.decode("ascii", "replace")
        if name not in types:
            raise InputError(
                f"its pickle has numbers of type {repr(name)[:40]}, expected {', '.join(types)}"
            )
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise InputError(f"its pickle has numbers in the order {repr(order)[:40]}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array whose numbers a pickle gives after it was made."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        self.array = laid_out(data, kind, shape, "F" if by_columns else "C")


def laid_out(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """The numbers in `data` in a shape, row by row ("C") or column by column ("F")."""
    if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray):
        raise InputError("its pickle has an array that is not made of numbers")
    sizes = shape if isinstance(shape, tuple) and len(shape) <= AXES else (None,)
    if any(type(n) is not int or not 0 <= n < 1 << 40 for n in sizes) or order not in ("C", "F"):
        raise InputError(f"its pickle has an array of shape {repr(shape)[:100]}")
    needed = math.prod(sizes) * kind.dtype.itemsize
    if len(data) != needed:
        raise InputError(
            f"its pickle has an array of shape {shape} with {len(data)} bytes, expected {needed}"
        )
    array = np.frombuffer(data, kind.dtype).reshape(sizes, order=order)
    array.flags.writeable = False
    return array


class _Unpickler(pickle.Unpickler):
    """Knows the few functions that arrays are made with, each one of ours.

    It hands out bound methods: a pickle can change neither what they do nor what the next file
    gets.
    """

    def __init__(self, file: io.BytesIO, types: Sequence[str] = TYPES):
        super().__init__(file, encoding="latin1")
        self._types = types
        self._known: dict[tuple[str, str], Any] = {
            # Named as an argument, and never called.
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): self._type,
            ("_codecs", "encode"): self._encode,
            ("__builtin__", "bytes"): self._no_bytes,
        }
        for core in _CORES:
            self._known[f"{core}.multiarray", "_reconstruct"] = self._array
            self._known[f"{core}.numeric", "_frombuffer"] = self._from_buffer

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may have under a name."""
        if (module, name) in self._known:
            return self._known[module, name]
        asked = " ".join(f"{module}.{name}".split())[:200]
        raise InputError(
            f"its pickle asks for {asked}: expected numpy arrays and plain containers, and nothing"
            " of it was run"
        )

    def persistent_load(self, pid: Any) -> Any:
        """Nothing lies outside of the file."""
        raise InputError("its pickle refers to something outside of it: expected numpy arrays")

    def _type(self, name: Any, *_: Any) -> _Type:
        return _Type(name, self._types)

    def _array(self, *_: Any) -> _Array:
        return _Array()

    def _from_buffer(self, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
        return laid_out(data, kind, shape, order)

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        """Bytes, as pickles of protocol 2 write them."""
        if not isinstance(text, str) or encoding != "latin1":
            raise InputError("its pickle encodes what is no text")
        return text.encode("latin1")

    def _no_bytes(self) -> bytes:
        """The numbers of an empty array, as pickles of protocol 2 write them."""
        return b""


def _arrays(value: Any, met: set[int]) -> Any:
    """The tree with arrays in the place of what stood for them; `met` are the dicts on the way."""
    if isinstance(value, _Array) and value.array is not None:
        return value.array
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError("its pickle holds more than dicts of numpy arrays")
    if id(value) in met:
        raise InputError("its pickle holds one dict in several places")
    met.add(id(value))
    return {key: _arrays(entry, met) for key, entry in value.items()}
