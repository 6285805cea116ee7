"""Stored transformers whose kernels are in 8 bits (`models.quantization`), array by array."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.models.quantization import KERNEL_SCALE, TABLE_TYPE, TABLES, quantize_kernels
from cogview_jax.runtime.errors import InputError

FLOAT32 = np.dtype(np.float32)


def quantized_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of `Deferred`s with its kernels in 8 bits, its tables in float16, the rest in float32.

    Raises:
        InputError: an array, when it is made, has numbers beyond the range of its new type.
    """
    found: dict[str, Any] = {}
    for name, entry in tree.items():
        if isinstance(entry, Mapping):
            found[name] = quantized_tree(entry)
        elif name == "kernel":
            found[name], found[KERNEL_SCALE] = _quantized(entry)
        else:
            found[name] = rounded(name, entry, TABLE_TYPE if name in TABLES else FLOAT32)
    return found


def _quantized(kernels: Deferred) -> tuple[Deferred, Deferred]:
    """The integers and the scales of kernels that are stacked by layer, which are read for each."""

    def part(number: int) -> Callable[[], np.ndarray]:
        def make() -> np.ndarray:
            made = [quantize_kernels(layer[None])[number] for layer in kernels.make()]
            if number == 1 and not all(np.isfinite(scale).all() for scale in made):
                raise InputError("a kernel has weights that are not finite, which no scale holds")
            return np.concatenate(made)

        return make

    layers, _, *outputs = kernels.shape
    return (
        Deferred(kernels.shape, np.dtype(np.int8), part(0)),
        Deferred((layers, *outputs), FLOAT32, part(1)),
    )


def rounded(name: str, array: Deferred, dtype: np.dtype) -> Deferred:
    """An array in another type, rounded to the nearest.

    Raises:
        InputError: when it is made, it has a number that is beyond the range of `dtype`.
    """

    def make() -> np.ndarray:
        given = array.make()
        with np.errstate(over="ignore"):
            found = given.astype(dtype)
        if (lost := np.isfinite(given) & ~np.isfinite(found)).any():
            raise InputError(
                f"{name} has {given[lost].flat[0]:.6g}, which is beyond the range of {dtype.name}"
            )
        return found

    return Deferred(array.shape, dtype, make)


def dequantized_tree(tree: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What a tree from `quantized_tree` stands for: the same arrays in float32, without scales.

    Raises:
        InputError: a kernel of the tree at `place` has no scales.
    """
    found: dict[str, Any] = {}
    for name, entry in tree.items():
        if isinstance(entry, Mapping):
            found[name] = dequantized_tree(entry, place)
        elif name == "kernel":
            if KERNEL_SCALE not in tree:
                raise InputError(f"{place} has a kernel in 8 bits without its {KERNEL_SCALE}")
            found[name] = _dequantized(entry, tree[KERNEL_SCALE])
        elif name != KERNEL_SCALE:
            found[name] = rounded(name, entry, FLOAT32)
    return found


def _dequantized(kernels: Deferred, scale: Deferred) -> Deferred:
    return Deferred(kernels.shape, FLOAT32, lambda: kernels.make() * scale.make()[:, None])
