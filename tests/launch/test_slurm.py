"""launch/slurm.sbatch under a SLURM of one machine that really starts its tasks."""

import json
import subprocess
import sys
import time

import pytest

import fake_slurm
from processes import free_port

CHILD = """
import os, signal, sys, time
names = ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS")
print("place", *(os.environ[name] for name in names), *sys.argv[1:], flush=True)
"""
WAITS = (
    CHILD
    + """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
while True:
    time.sleep(0.05)
"""
)


@pytest.fixture
def batch(root, tmp_path):
    """Runs the batch script on two nodes, as job 7."""
    environ = fake_slurm.install(tmp_path, root, nodes=2, job=7)

    def start(*command, **changes):
        script = ["bash", str(root / "launch" / "slurm.sbatch"), *map(str, command)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            script,
            cwd=root,
            env=environ | changes,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def requeued(tmp_path):
    log = tmp_path / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


def test_every_process_of_every_node_gets_its_place_and_arguments_as_they_are(batch, tmp_path):
    process = batch(sys.executable, "-c", CHILD, "a b", "$HOME", PROCESSES="2")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    places = sorted(line.split("place ")[1] for line in out.splitlines() if "place" in line)
    assert places == [f"{i} 4 localhost:61447 a b $HOME" for i in range(4)]
    assert requeued(tmp_path) == []


def test_when_the_time_is_up_the_run_stops_and_the_job_is_put_back(batch, tmp_path):
    process = batch(sys.executable, "-c", WAITS)
    lines = [process.stdout.readline() for _ in range(2)]
    assert all("place" in line for line in lines), lines
    process.terminate()
    process.communicate(timeout=300)
    assert process.returncode == 75
    assert requeued(tmp_path) == ["requeue 7"]


@pytest.mark.parametrize("status", [1, 2])
def test_a_failure_is_not_put_back(batch, tmp_path, status):
    code = f"import sys; sys.exit({status})"
    process = batch(sys.executable, "-c", code, MAX_RESTARTS="0")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == status, out
    assert requeued(tmp_path) == []


def test_no_command_is_explained(batch):
    process = batch()
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out.startswith("usage: sbatch")) == (2, True)


def test_two_nodes_train_together(batch, chain, tmp_path):
    """The chain's image tokenizer: with as many devices as it had, the same losses."""
    workdir = tmp_path / "run"
    arguments = [*chain.train_codec("slurm"), f"--workdir={workdir}"]
    began = time.monotonic()
    process = batch(sys.executable, "-m", "cogview_jax.train", *arguments, PORT=str(free_port()))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, (time.monotonic() - began, out)
    assert (workdir / "bundle" / "bundle.json").is_file()
    ours, theirs = (
        [json.loads(line)["loss"] for line in (folder / "metrics/metrics.jsonl").open()]
        for folder in (workdir, chain.codec)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)
