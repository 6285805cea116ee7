"""The device mesh: which devices there are and along which axes work is split over them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import spec


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one may be -1: all devices that the others leave.

    data: copies of the model, each with a part of the batch. fsdp: the batch and the parameters are
    both split. tensor: heads, MLP and vocabulary are split within a layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (`data`, `fsdp`, `tensor`) over `devices` (all devices when None).

    Raises InputError where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    names = tuple(field.name for field in fields(config))
    sizes = [getattr(config, name) for name in names]
    given = ", ".join(f"mesh.{name}={size}" for name, size in zip(names, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"{given}: sizes are positive and at most one is -1 (the rest)")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // math.prod(s for s in sizes if s != -1))
    if math.prod(sizes) != len(devices):
        raise InputError(f"{given} needs {math.prod(sizes)} devices, but there are {len(devices)}")
    # Auto, by name: the default of jax.make_mesh is Explicit, on which Linen's gathers fail.
    return Mesh(np.reshape(devices, sizes), names, axis_types=(AxisType.Auto,) * len(names))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's part of a batch on its devices, as one global array a key.

    The leading dimension of every array is the batch; a global batch is the concatenation of the
    processes' parts in order. Raises InputError where the mesh cannot split it evenly.
    """

    def place(name: str, local: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, spec(("batch",) + (None,) * (local.ndim - 1)))
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = local.shape[0] * jax.process_count()
        if rows % ways:
            raise InputError(
                f"a batch of {rows} rows ({name}) cannot be split over mesh.data x mesh.fsdp ="
                f" {ways} devices"
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(local))

    return {name: place(name, array) for name, array in batch.items()}
