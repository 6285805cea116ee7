"""Reads and writes the pickle inside a torch file without torch.

Reading builds tensors and plain containers and nothing else. Other objects that a training run
saves beside its weights (random states, arguments, optimizers) become inert: each is replaced by an
object that ignores whatever is put into it. Everything else that a pickle may ask for is refused by
its name, so no file can make this program run code. The memory that a pickle may take is bounded
by `opcodes.py` and by the number of bytes in the file.
"""

import io
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from cogview_jax.interop.torch_format.opcodes import examined
from cogview_jax.runtime.errors import InputError

#: Tensors may share a storage, as tied weights do, up to so many times its size in all.
VIEWS = 64
#: A tensor may have so many axes.
AXES = 32
#: The type of the numbers for each of torch's names of a storage.
STORAGES = {
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "FloatStorage": np.dtype("float32"),
    "DoubleStorage": np.dtype("float64"),
    "CharStorage": np.dtype("int8"),
    "ShortStorage": np.dtype("int16"),
    "IntStorage": np.dtype("int32"),
    "LongStorage": np.dtype("int64"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}
#: These types have no storage of their own. Their tensors name the type, over a storage of bytes.
LATER_TYPES = {name: np.dtype(name) for name in ("uint16", "uint32", "uint64")}
#: Real checkpoints hold objects of these packages beside the weights.
INERT = (
    *("numpy", "torch", "deepspeed", "apex", "fp16", "mpu"),
    *("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf"),
)
INERT_NAMES = (
    *(("argparse", "Namespace"), ("_codecs", "encode"), ("collections", "defaultdict")),
    *((module, name) for module in ("builtins", "__builtin__") for name in ("dict", "list")),
)


class Storage(NamedTuple):
    """A flat array in the file: its name, the type of its numbers, and how many there are."""

    key: str
    dtype: np.dtype
    size: int


class View(NamedTuple):
    """A tensor as a shape over a storage. Offset and strides count numbers and not bytes."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(file: BinaryIO, tensor: Callable[[View], Any]) -> Any:
    """Reads the tree in the next pickle of a file, which is then behind that pickle.

    The tree consists of dict, list, tuple, set, str, numbers, and what `tensor` returns for views.

    Raises:
        InputError: the pickle is damaged, or asks for something else.
    """
    data, instructions = examined(file)
    try:
        return _Unpickler(io.BytesIO(data), tensor, instructions).load()
    except InputError:
        raise
    except Exception as error:  # A damaged pickle can raise any of them.
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"its pickle cannot be read ({type(error).__name__}: {reason})") from error


class _Inert:
    """Replaces an object that this program does not need; ignores whatever it is given."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def _ignore(self, *_, **__) -> None:
        pass

    __setstate__ = __setitem__ = __call__ = append = extend = add = _ignore


class _Ordered(dict):
    """An OrderedDict whose attributes cannot be set (torch keeps versions in them)."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Knows the few functions and types that tensors are made of.

    It returns only bound methods, and classes that are made for one file, so that a pickle can
    change neither what they do nor what the next file gets.
    """

    def __init__(self, file: BinaryIO, tensor: Callable[[View], Any], instructions: int):
        super().__init__(file, encoding="utf-8")
        self._tensor = tensor
        self._inert: dict[tuple[str, str], type] = {}
        self._shown: dict[str, int] = {}  # For each storage, the bytes of all its tensors.
        self._copied, self._most_copied = 0, instructions
        self._known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild,
            ("torch._utils", "_rebuild_tensor_v3"): self._rebuild_later,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch.storage", "UntypedStorage"): _Type(np.dtype("uint8")),
            ("collections", "OrderedDict"): self._ordered,
        }
        for name, dtype in (STORAGES | LATER_TYPES).items():
            self._known["torch", name] = _Type(dtype)
        for module in ("builtins", "__builtin__"):
            self._known[module, "set"] = self._set
            self._known[module, "frozenset"] = self._frozenset

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a pickle may use under a name; raises InputError for all other names."""
        if (module, name) in self._known:
            return self._known[module, name]
        if module.partition(".")[0] in INERT or (module, name) in INERT_NAMES:
            kind = type(name[:60], (_Inert,), {})
            return self._inert.setdefault((module, name), kind)
        asked = " ".join(f"{module}.{name}".split())[:200]
        raise InputError(
            f"its pickle asks for {asked}: expected tensors and plain containers, and nothing of it"
            " was run"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Returns the storage that holds the numbers of a tensor."""
        # Files from before torch 1.6 have a sixth part, for storages that are parts of others.
        kind, type_, key, _, size, *part = pid
        readable = isinstance(type_, _Type) and isinstance(key, str) and part in ([], [None])
        if kind != "storage" or not readable:
            raise InputError(
                f"its pickle holds storage {repr(pid)[:200]}, of a type this program cannot read"
            )
        return Storage(key, type_.dtype, size)

    def _rebuild(self, storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Any:
        return self._view(storage, storage.dtype, offset, shape, strides)

    def _rebuild_later(self, storage, offset, shape, strides, _, __, type_, *___) -> Any:
        size = storage.size // type_.dtype.itemsize
        return self._view(
            storage._replace(dtype=type_.dtype, size=size), type_.dtype, offset, shape, strides
        )

    def _view(self, storage: Storage, dtype: np.dtype, offset: int, shape, strides) -> Any:
        numbers = (storage.size, offset, *shape[: AXES + 1], *strides[: AXES + 1])
        # The bounds keep the products below small.
        if any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers) or not (
            len(shape) == len(strides) <= AXES
        ):
            laid = f"shape {repr(shape)[:100]} over strides {repr(strides)[:100]}"
            raise InputError(f"its pickle lays {laid}")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.size:
            raise InputError(
                f"its tensor of shape {shape} reaches to number {last} of storage"
                f" {storage.key:.60}, which has {storage.size}"
            )
        if math.prod(shape) > storage.size:
            raise InputError(
                f"its tensor of shape {shape} and strides {strides} shows numbers again and again:"
                f" storage {storage.key:.60} has {storage.size}"
            )
        shown = self._shown.get(storage.key, 0) + math.prod(shape) * dtype.itemsize
        if shown > VIEWS * storage.size * storage.dtype.itemsize:
            raise InputError(f"its tensors show storage {storage.key:.60} more than {VIEWS} times")
        self._shown[storage.key] = shown
        return self._tensor(View(storage, dtype, offset, tuple(shape), tuple(strides)))

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor

    def _ordered(self, *items: Any) -> _Ordered:
        return _Ordered(*map(self._counted, items))

    def _set(self, items: Any = ()) -> set:
        return set(self._counted(items))

    def _frozenset(self, items: Any = ()) -> frozenset:
        return frozenset(self._counted(items))

    def _counted(self, items: Any) -> Any:
        """Returns `items`; all items that are copied may be no more than there are instructions."""
        self._copied += len(items)
        if self._copied > self._most_copied:
            raise InputError("its pickle copies the same values again and again")
        return items


class _Type(NamedTuple):
    """A type that a pickle names, without the methods that a numpy type has."""

    dtype: np.dtype


class Slot:
    """Stands for a tensor in a tree that is to be written, with its shape and type."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        """`dtype` has to be a type for which torch has a storage."""
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)

    def __repr__(self) -> str:
        return f"Slot({self.shape}, {self.dtype})"


def dump(tree: Any, keys: Mapping[Slot, str]) -> bytes:
    """Returns the pickle (protocol 2) of a tree; `keys` names the storage of each slot."""
    return b"".join((pickle.PROTO, b"\x02", *_opcodes(tree, keys), pickle.STOP))


def _opcodes(value: Any, keys: Mapping[Slot, str]):
    """Yields the instructions that put `value` on the stack of a reader."""
    if isinstance(value, dict):
        yield from (pickle.EMPTY_DICT, pickle.MARK)
        for key, entry in value.items():
            yield from (*_opcodes(key, keys), *_opcodes(entry, keys))
        yield pickle.SETITEMS
    elif isinstance(value, Slot):
        yield from _tensor_opcodes(value, keys[value])
    else:
        yield pickle.dumps(value, protocol=2)[2:-1]  # Without its header and end.


def _tensor_opcodes(slot: Slot, key: str):
    """Yields a call of torch's function for a contiguous tensor with a storage of its own."""
    name = next(name for name, dtype in STORAGES.items() if dtype == slot.dtype)
    strides = tuple(math.prod(slot.shape[axis + 1 :]) for axis in range(len(slot.shape)))
    yield from (_global("torch._utils", "_rebuild_tensor_v2"), pickle.MARK)
    yield from (pickle.MARK, *_opcodes("storage", {}), _global("torch", name))
    for plain in (key, "cpu", math.prod(slot.shape)):
        yield from _opcodes(plain, {})
    yield from (pickle.TUPLE, pickle.BINPERSID)
    for value in (0, slot.shape, strides, False):
        yield from _opcodes(value, {})
    yield from (_global("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE)
    yield from (pickle.TUPLE, pickle.REDUCE)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
