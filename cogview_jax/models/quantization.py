"""Kernels in 8 bits: integers from -127 to 127, and a float32 scale for each output channel.

A quantised `Linear` has the parameter `KERNEL_SCALE` beside its kernel: kernel x scale is the
kernel that it stands for. The rounding is to the nearest, so an entry is off by half a scale at
most: 1/254 of the largest magnitude of its channel.

Legend: B batch, D width, F output channels.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, Int32

#: The parameter beside a kernel of int8: float32, of the shape of the kernel's output.
KERNEL_SCALE = "kernel_scale"
#: The largest magnitude of an int8 that has its negative.
LARGEST = 127
#: The type of the embedding tables of a model whose kernels are in 8 bits.
TABLE_TYPE = np.dtype(np.float16)
TABLES = ("word_embedding", "position_embedding")


@jax.jit
def quantize_kernels(
    kernels: Float[Array | np.ndarray, "L D *F"],
) -> tuple[Int8[Array, "L D *F"], Float[Array, " L *F"]]:
    """Rounds the kernels of L layers to 8 bits, each layer by itself.

    Returns:
        The integers, and the scale of every output channel of every layer: the largest magnitude
        of the channel's weights / 127. A channel of zeros has scale 0.
    """
    scale = jnp.max(jnp.abs(kernels.astype(jnp.float32)), axis=1) / LARGEST
    divisor = jnp.where(scale > 0, scale, 1)[:, None]
    return jnp.round(kernels / divisor).astype(jnp.int8), scale


def quantized_arrays(
    arrays: Iterable[tuple[Sequence[str], Any]],
) -> Iterator[tuple[Sequence[str], Any]]:
    """Quantises parameters that come one by one, stacked by layer, with their keys.

    Kernels become two arrays, embedding tables float16, and the others, biases and norms, float32.
    """
    for keys, array in arrays:
        if keys[-1] == "kernel":
            integers, scale = quantize_kernels(array)
            yield keys, integers
            yield (*keys[:-1], KERNEL_SCALE), scale
        else:
            yield keys, array.astype(TABLE_TYPE if keys[-1] in TABLES else jnp.float32)


def quantized_shapes(boxed: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes of parameters, stacked and boxed with their logical axes, once quantised.

    Args:
        boxed: from `models.parameter_shapes.transformer_shapes`.
    """
    found: dict[str, Any] = {}
    for name, entry in boxed.items():
        if isinstance(entry, Mapping):
            found[name] = quantized_shapes(entry)
            continue
        shape = nn.unbox(entry)
        dtype = TABLE_TYPE if name in TABLES else np.int8 if name == "kernel" else jnp.float32
        found[name] = entry.replace_boxed(jax.ShapeDtypeStruct(shape.shape, dtype))
        if name == "kernel":
            layers, _, *outputs = shape.shape
            scale = jax.ShapeDtypeStruct((layers, *outputs), jnp.float32)
            names = (entry.names[0], *entry.names[2:])
            found[KERNEL_SCALE] = entry.replace_boxed(scale).replace(names=names)
    return found


def is_quantized(params: Any) -> bool:
    """Returns whether any kernel of a tree is in 8 bits."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return any(getattr(keys[-1], "key", None) == KERNEL_SCALE for keys, _ in leaves)


def widened_product(
    x: Float[Array | np.ndarray, "*B D"],
    kernel: Int8[Array | np.ndarray, " D *F"],
    scale: Float[Array | np.ndarray, "*F"],
    dtype: DTypeLike,
) -> Float[Array, "..."]:
    """Multiplies x with a quantised kernel, whose integers are widened to the type of x.

    GPUs and TPUs widen inside the product and read 8 bits from memory.
    """
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    y = jax.lax.dot_general(x, kernel.astype(x.dtype), axes, preferred_element_type=jnp.float32)
    return (y * scale).astype(dtype)


def integer_product(
    x: Float[Array | np.ndarray, "*B D"],
    parts: Sequence[Int8[Array | np.ndarray, "_ D"]],
    scale: Float[Array | np.ndarray, "*F"],
    dtype: DTypeLike,
) -> Float[Array, "*B F"]:
    """Multiplies x with a quantised kernel that is given in parts [F_i, D], on a CPU.

    XLA's CPU backend widens a kernel by writing all of it to memory, but multiplies int8 by int8
    with instructions of its own. So x is split into two int8 numbers a value, as high + low / 254
    times 1/127 of the largest magnitude of its row: 15 bits, which is close to float32 beside the
    8 bits of the kernel. A single row thereby becomes two, and two rows cost what one costs.

    The sums are exact in int32 up to D = 133,000, so a row's result depends on that row alone.
    """
    halves, unit = split_in_halves(x.reshape(-1, x.shape[-1]))
    over_width = (((1,), (1,)), ((), ()))
    columns = [
        jax.lax.dot_general(part, halves, over_width, preferred_element_type=jnp.int32)
        for part in parts
    ]
    y = join_halves(jnp.concatenate(columns).T) * unit * scale.reshape(-1)
    return y.astype(dtype).reshape(*x.shape[:-1], -1)


def split_in_halves(
    x: Float[Array | np.ndarray, "*B R D"],
) -> tuple[Int8[Array, "*B twice_R D"], Float[Array, "*B R 1"]]:
    """Splits every value of x into two int8 numbers, as high + low / 254 units.

    Returns:
        The high numbers of all rows, then the low ones, and the unit of each row.
    """
    units, unit = _in_units(x)
    high = jnp.round(units)
    low = jnp.round((units - high) * (2 * LARGEST))
    return jnp.concatenate([high, low], axis=-2).astype(jnp.int8), unit


def join_halves(sums: Int32[Array, "*B twice_R F"]) -> Float[Array, "*B R F"]:
    """Joins the products of both numbers of `split_in_halves`, in units of each row."""
    high, low = jnp.split(sums.astype(jnp.float32), 2, axis=-2)
    return high + low / (2 * LARGEST)


def quantize_rows(
    x: Float[Array | np.ndarray, "*B D"],
) -> tuple[Int8[Array, "*B D"], Float[Array, "*B 1"]]:
    """Rounds rows to 8 bits, each with a scale of its own; a row of zeros has scale 0."""
    units, unit = _in_units(x)
    return jnp.round(units).astype(jnp.int8), unit


def _in_units(
    x: Float[Array | np.ndarray, "*B D"],
) -> tuple[Float[Array, "*B D"], Float[Array, "*B 1"]]:
    """Rows in units of 1/127 of their largest magnitude, and the unit of each."""
    rows = jnp.asarray(x, jnp.float32)
    unit = jnp.max(jnp.abs(rows), axis=-1, keepdims=True) / LARGEST
    return rows / jnp.where(unit > 0, unit, 1), unit
