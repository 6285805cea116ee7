"""The device mesh: which devices there are and along which axes work is split over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import spec


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one may be -1: all devices that the others leave.

    Attributes:
        data: copies of the model, each with a part of the batch.
        fsdp: the batch and the parameters are both split.
        tensor: heads, MLP and vocabulary are split within a layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name, size in vars(self).items():
            if size < 1 and size != -1:
                raise SettingError(
                    f"{name} = {size}: expected at least 1, or -1 for all devices that the others"
                    " leave"
                )


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (`data`, `fsdp`, `tensor`) over `devices` (all devices when None).

    Raises InputError where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    names = tuple(field.name for field in fields(config))
    sizes = [getattr(config, name) for name in names]
    given = ", ".join(f"mesh.{name}={size}" for name, size in zip(names, sizes, strict=True))
    if sizes.count(-1) > 1:
        raise InputError(f"{given}: at most one is -1 (the rest)")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // math.prod(s for s in sizes if s != -1))
    if math.prod(sizes) != len(devices):
        raise InputError(f"{given} needs {math.prod(sizes)} devices, but there are {len(devices)}")
    # Neighbours in the mesh are neighbours in the wiring, where jax knows it (TPUs).
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # Auto, by name: the default of jax.make_mesh is Explicit, on which Linen's gathers fail.
    return Mesh(placed, names, axis_types=(AxisType.Auto,) * len(names))


def local_parts(mesh: Mesh) -> tuple[list[int], int]:
    """Which parts of a global batch this process feeds: their numbers, and into how many it is cut.

    A batch is cut over the axes `data` and `fsdp`. Processes whose devices differ only along
    `tensor` feed the same parts. The parts of a process need not be neighbours: on TPUs a mesh
    follows the wiring, not the numbers of the hosts.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    sharding = NamedSharding(mesh, spec(("batch",)))
    indices = filter(None, sharding.addressable_devices_indices_map((ways,)).values())
    return sorted({part.start or 0 for (part,) in indices}), ways


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's rows of a batch on its devices, as one global array for each array.

    Args:
        batch: a pytree of numpy arrays. The leading dimension of each is the batch, and holds the
            rows of `local_parts`, in their order.
        mesh: over whose axes `data` and `fsdp` the rows are split.

    Returns:
        The same pytree of jax arrays.

    Raises:
        InputError: the mesh cannot split the rows evenly.
    """
    parts, ways = local_parts(mesh)

    def place(path: tuple[Any, ...], local: np.ndarray) -> jax.Array:
        if local.shape[0] % len(parts):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise InputError(
                f"a batch of {local.shape[0] * ways // len(parts)} rows ({name}) cannot be split"
                f" over mesh.data x mesh.fsdp = {ways} devices"
            )
        sharding = NamedSharding(mesh, spec(("batch",) + (None,) * (local.ndim - 1)))
        shape = (local.shape[0] // len(parts) * ways, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, np.asarray(local), shape)

    return jax.tree_util.tree_map_with_path(place, batch)


def to_host(array: jax.Array) -> np.ndarray:
    """All of an array in this process's memory, wherever it lies; every process calls it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
