"""Real processes save and restore together, whatever happens to one of them."""

import json
import re

import jax
import pytest
from checkpoints import saving_process

from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from processes import Processes, left_by_the_dead


def launch(root, directory, scene, count):
    """The exit statuses, and every line that each process wrote."""
    command = (root / "tests" / "checkpoints" / "saving_process.py", directory, scene)
    with Processes(root, command, count, 8 // count) as running:
        statuses = running.statuses()
        return statuses, [running.output(i).splitlines() for i in range(count)]


def reports(lines):
    return [line for line in lines if line.startswith("checkpoint")]


@pytest.fixture(scope="module")
def left(root, tmp_path_factory):
    """What four processes leave of which one was killed, and what they said."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    return directory, launch(root, directory, "first", 4)


def test_a_disk_that_fails_under_one_process_fails_the_checkpoint_on_all(left):
    directory, (statuses, outputs) = left
    assert statuses == [0, -9, 0, 0], outputs
    for process in (0, 2, 3):
        found = json.loads(outputs[process][-1])
        assert found["nothing"]
        assert found["saved"][0]
        saved, seconds = found["disk"]
        assert not saved
        assert seconds < saving_process.PATIENCE / 2, "nobody waits for what is known"
        assert found["room"][0]
        assert found["restored"] == 7
        assert len(reports(outputs[process])) == (2 if process == 0 else 0)
        noise = [line for line in outputs[process] if "Traceback" in line or "ERROR" in line]
        assert noise == []
    line = reports(outputs[0])[0]
    assert line == (
        f"checkpoint {directory}/6 was not saved: process 2: File too large; training goes on,"
        " checkpoint 3 is kept"
    )


def test_a_process_that_dies_while_saving_hangs_nobody(left):
    directory, (_, outputs) = left
    for process in (0, 2, 3):
        saved, seconds = json.loads(outputs[process][-1])["death"]
        assert not saved
        assert seconds < saving_process.PATIENCE / 2
    line = reports(outputs[0])[1]
    assert line == (
        f"checkpoint {directory}/9 was not saved: process 1 did not answer within"
        f" {saving_process.TIMEOUT} s; training goes on, checkpoint 7 is kept"
    )
    assert sorted(path.name for path in directory.iterdir() if path.name.isdecimal()) == ["3", "7"]


def test_another_number_of_processes_finds_the_damage_and_goes_on_before_it(root, left):
    directory, _ = left
    files = json.loads((directory / "7" / "manifest.json").read_text())["files"]
    # Every other file, from the second largest on, is process 1's to read.
    name = sorted(files, key=lambda name: (-files[name][0], name))[1]
    content = bytearray((directory / "7" / name).read_bytes())
    content[10] ^= 1
    (directory / "7" / name).write_bytes(content)
    (left_by_the_dead(directory / "9") / "params").mkdir(parents=True)
    statuses, outputs = launch(root, directory, "second", 2)
    assert statuses == [0, 0], outputs
    (line,) = reports(outputs[0])
    assert re.match(
        rf"checkpoint {directory}/7 is damaged \({name}: has sha256 \w+, expected", line
    )
    assert "checkpoint 3 is used instead" in line
    for lines in outputs:
        each = json.loads(lines[-1])
        assert each["restored"] == 3
        assert each["again"][0]
        assert each["there"][0]
        assert each["older"] == 3
    assert sorted(path.name for path in directory.iterdir()) == ["3", "7"]
    assert [path.name for path in (directory.parent / "damaged").iterdir()] == ["7"]
    # And this one process, on another mesh again.
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, tensor=2), jax.devices())
    with Checkpointer(directory) as checkpointer:
        assert saving_process.step_of(mesh, checkpointer.restore(saving_process.shapes(mesh))) == 7
