"""Which device stands where on the mesh, and which rows of a batch it gets."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, local_parts, make_mesh, place_batch, to_host


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
        (MeshConfig(data=2, tensor=-1), (2, 1, 4)),
        (MeshConfig(data=1, fsdp=8), (1, 8, 1)),
    ],
)
def test_sizes_fill_the_devices_in_their_order(config, shape):
    mesh = make_mesh(config)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    # Tensor is innermost: its traffic is the heaviest, and neighbours are joined best.
    assert mesh.devices.reshape(-1).tolist() == jax.devices()
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_some_of_the_devices():
    two = jax.devices()[3:5]
    assert make_mesh(MeshConfig(), two).devices.reshape(-1).tolist() == two


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3, fsdp=1), "mesh.data=3, mesh.fsdp=1, mesh.tensor=1 needs 3 devices"),
        (MeshConfig(data=-1, fsdp=3), "mesh.data=-1, mesh.fsdp=3.* needs 6 .* there are 8"),
        (MeshConfig(data=-1, tensor=16), "needs 16 devices, but there are 8"),
        (MeshConfig(data=-1, fsdp=-1), "at most one is -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        make_mesh(config)


@pytest.mark.parametrize("size", [0, -2])
def test_an_axis_has_at_least_one_device(size):
    with pytest.raises(InputError, match=f"fsdp = {size}: expected at least 1, or -1"):
        MeshConfig(fsdp=size)


class Batch(NamedTuple):
    """Two arrays, the first axis of which is rows."""

    rows: Any
    flat: Any


def test_rows_go_to_the_devices_of_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = np.arange(8 * 3).reshape(8, 3)
    placed = place_batch(Batch(rows, np.arange(8)), mesh)
    np.testing.assert_array_equal(placed.rows, rows)
    # Devices 0 and 1 are one pair of `tensor`, 2 and 3 the next along `fsdp`, and so on.
    held = {shard.device.id: np.asarray(shard.data) for shard in placed.rows.addressable_shards}
    first = jax.devices()[0].id
    for device, start in enumerate([0, 0, 2, 2, 4, 4, 6, 6]):
        np.testing.assert_array_equal(held[first + device], rows[start : start + 2])
    assert {shard.data.shape for shard in placed.flat.addressable_shards} == {(2,)}


def test_rows_that_cannot_be_split_are_refused():
    with pytest.raises(InputError, match=r"a batch of 6 rows \(rows\).*mesh.fsdp = 8 devices"):
        place_batch(Batch(np.zeros((6, 2)), np.zeros(8)), make_mesh(MeshConfig(data=4, fsdp=2)))


def test_one_process_feeds_every_part():
    assert local_parts(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))) == ([0, 1, 2, 3], 4)
    assert local_parts(make_mesh(MeshConfig(data=1, tensor=8))) == ([0], 1)


def test_an_array_comes_to_the_host_whole():
    rows = np.arange(8 * 3).reshape(8, 3)
    placed = place_batch({"rows": rows}, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    np.testing.assert_array_equal(to_host(placed["rows"]), rows)
