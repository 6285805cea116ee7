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
def reference():
    """The losses of one process, whose other meshes test_step.py compares."""
    return losses(MESHES["data"])


# A mesh compiles for a while in each process. Two processes split what is over data or fsdp, and
# four of two devices each the tensors, which two processes of four would keep to themselves.
@pytest.mark.parametrize(
    ("processes", "devices", "meshes"), [(2, 4, ("data", "fsdp", "mixed")), (4, 2, ("tensor",))]
)
def test_any_number_of_processes_and_any_mesh_give_the_same_losses(
    root, reference, tmp_path, processes, devices, meshes
):
    sizes = {name: MESHES[name] for name in meshes}
    (tmp_path / "meshes.json").write_text(json.dumps(sizes))
    command = (root / "tests" / "training_losses.py", tmp_path / "meshes.json")
    with Processes(root, command, processes, devices) as started:
        started.succeed()
        found = json.loads(started.output(0).splitlines()[-1])
        assert started.output(1) == ""
    assert len(reference) == STEPS
    assert reference[-1] < reference[0]
    assert found.keys() == sizes.keys()
    for name in meshes:
        np.testing.assert_allclose(found[name], reference, rtol=1e-5, atol=0, err_msg=name)
