"""Logical axis names: one table says which mesh axes carry each named dimension.

Parameters and activations name their dimensions (`("embed", "mlp")`); this table alone maps the
names to the mesh (`data`, `fsdp`, `tensor`). Flax replicates silently where a name is misspelt or
where two names claim one mesh axis; here both are errors, raised while tracing, and so is a large
parameter that no axis splits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from cogview_jax.runtime.errors import InputError

ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)

#: name of a dimension -> the mesh axes that split it (None: every device holds all of it).
RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "sequence": None,
    "width": None,
    # transformer parameters; `heads` and `mlp` also name the activations they produce
    "layers": None,
    "embed": "fsdp",
    "qkv": None,
    "heads": "tensor",
    "mlp": "tensor",
    "vocabulary": "tensor",
    "positions": None,
    "norm": None,
    # the wide axis of a low-rank adapter
    "adapter": ("fsdp", "tensor"),
    # image codec parameters
    "tap": None,
    "channels_in": None,
    "channels_out": "fsdp",
    "pixel": None,
    "codes": "fsdp",
    "code_width": None,
}

#: Elements from which on an array must be split where the mesh splits parameters at all: 16 MiB of
#: float32. Biases and norms of the largest models are below it, and no matrix worth splitting is.
LARGE = 1 << 22


def spec(names: Sequence[str | None]) -> PartitionSpec:
    """The partition of an array whose dimensions carry `names` (None: never split).

    Raises InputError for a name missing from `RULES`, and where two names claim the same mesh axis.
    """
    axes: list[str | tuple[str, ...] | None] = []
    owner: dict[str, str | None] = {}
    for name in names:
        if name is not None and name not in RULES:
            raise InputError(
                f"unknown logical axis {name!r}; choose from {', '.join(sorted(RULES))}"
            )
        rule = RULES[name] if name is not None else None
        for axis in (rule,) if isinstance(rule, str) else rule or ():
            if axis in owner:
                raise InputError(
                    f"logical axes {owner[axis]!r} and {name!r} both claim the mesh axis {axis!r}"
                )
            owner[axis] = name
        axes.append(rule)
    return PartitionSpec(*axes)


def constrain(x: ArrayT, *names: str | None) -> ArrayT:
    """`x` with its sharding pinned to `names` under `jax.set_mesh`; `x` itself outside any mesh.

    A dimension that its mesh axes do not divide, such as a batch of few images sampled during
    training, is left whole.
    """
    partition = _partition(x.shape, names)
    return x if partition is None else jax.lax.with_sharding_constraint(x, partition)


def map_shards(
    function: Callable[..., jax.Array], names: Sequence[str | None], *arrays: jax.Array
) -> jax.Array:
    """Calls `function` on each device's parts of arrays; on the whole arrays outside any mesh.

    It is for kernels, which the compiler cannot split over the devices of `jax.set_mesh`. A
    dimension is whole on all devices where `constrain` would leave it whole.

    Args:
        function: computes an array from `arrays`, each part of it from the same parts of these.
        names: the logical axes of all these arrays.
        arrays: arrays of one shape.
    """
    partition = _partition(arrays[0].shape, names)
    if partition is None:
        return function(*arrays)
    # Pallas does not say along which mesh axes the results of a kernel differ, so that jax cannot
    # check it.
    mapped = jax.shard_map(function, in_specs=partition, out_specs=partition, check_vma=False)
    return mapped(*arrays)


def _partition(shape: tuple[int, ...], names: Sequence[str | None]) -> PartitionSpec | None:
    """The partition of an array under `jax.set_mesh`; None outside any mesh."""
    if len(names) != len(shape):
        raise InputError(f"{len(names)} logical axes {names} given for an array of shape {shape}")
    partition, mesh = spec(names), jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    pairs = zip(shape, partition, strict=True)
    return PartitionSpec(*(None if size % _ways(mesh, axes) else axes for size, axes in pairs))


def sharded_shapes(boxed: Any, mesh: Mesh | AbstractMesh | None = None) -> Any:
    """Shape, type and sharding of every array of a tree, from the names its arrays were made with.

    Without a mesh everything lies whole on the first local device. An array without names is
    replicated.

    Args:
        boxed: arrays or their shapes, boxed with logical axis names by Flax where they have any.
        mesh: where the arrays are to be.

    Returns:
        A tree of jax.ShapeDtypeStruct, unboxed.

    Raises:
        InputError: a dimension cannot be split over its mesh axes, or a large array would lie whole
            on every device of a mesh that splits parameters.
    """

    def place(path: tuple, partition: PartitionSpec, leaf: Any) -> Any:
        # An optimizer that updates some of the parameters leaves boxes of nothing for the others.
        if not jax.tree.leaves(leaf):
            return leaf
        sharding: jax.sharding.Sharding
        if mesh is None:
            sharding = SingleDeviceSharding(jax.local_devices()[0])
        else:
            resolved = spec(tuple(partition))
            _check_divides(leaf.shape, resolved, mesh)
            _check_split(jax.tree_util.keystr(path), leaf.shape, resolved, mesh)
            sharding = NamedSharding(mesh, resolved)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    names = nn.get_partition_spec(boxed)
    return jax.tree.map_with_path(
        place, names, unbox(boxed), is_leaf=lambda node: isinstance(node, PartitionSpec)
    )


def unbox(tree: Any) -> Any:
    """The arrays of a tree without the boxes that hold their logical axis names."""
    return nn.unbox(tree)


def _check_divides(
    shape: tuple[int, ...], partition: PartitionSpec, mesh: Mesh | AbstractMesh
) -> None:
    for size, axes in zip(shape, partition, strict=False):
        ways = _ways(mesh, axes)
        if size % ways:
            raise InputError(
                f"a parameter of shape {shape} cannot be split {ways} ways over {axes}; choose mesh"
                f" sizes that divide {size} (the mesh is {dict(mesh.shape)})"
            )


def _check_split(
    name: str, shape: tuple[int, ...], partition: PartitionSpec, mesh: Mesh | AbstractMesh
) -> None:
    splits = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
    whole = all(_ways(mesh, axes) == 1 for axes in partition)
    if splits and whole and math.prod(shape) >= LARGE:
        raise InputError(
            f"the parameter {name} of shape {shape} would lie whole on every device of the mesh"
            f" {dict(mesh.shape)}: give one of its dimensions a logical axis that RULES splits over"
            " fsdp or tensor"
        )


def _ways(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    """Into how many parts the mesh axes of one dimension split it."""
    return math.prod(
        mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ())
    )
