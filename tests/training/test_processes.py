"""The same losses, whatever the processes and the mesh: real processes, one machine."""

import json

import numpy as np
import pytest

from processes import Processes
from training_losses import STEPS, losses

MESHES = {
    "data": {"data": 8, "fsdp": 1, "tensor": 1},
    "fsdp": {"data": 1, "fsdp": 8, "tensor": 1},
    "tensor": {"data": 1, "fsdp": 2, "tensor": 4},
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.fixture(scope="module")
def one_process():
    return {name: losses(sizes) for name, sizes in MESHES.items()}


# A mesh compiles for a while in each process: four of them show what two do not.
@pytest.mark.parametrize(
    ("processes", "devices", "meshes"), [(2, 4, tuple(MESHES)), (4, 2, ("tensor", "mixed"))]
)
def test_any_number_of_processes_and_any_mesh_give_the_same_losses(
    root, one_process, tmp_path, processes, devices, meshes
):
    sizes = {name: MESHES[name] for name in meshes}
    (tmp_path / "meshes.json").write_text(json.dumps(sizes))
    command = (root / "tests" / "training_losses.py", tmp_path / "meshes.json")
    with Processes(root, command, processes, devices) as started:
        started.succeed()
        found = json.loads(started.output(0).splitlines()[-1])
        assert started.output(1) == ""
    reference = one_process["data"]
    assert len(reference) == STEPS
    assert reference[-1] < reference[0]
    assert found.keys() == sizes.keys()
    for run in (one_process, found):
        for name in run:
            np.testing.assert_allclose(run[name], reference, rtol=1e-5, atol=0, err_msg=name)
