"""Which process of how many this is, and who told it; real ones: training/test_processes.py."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import (
    PREEMPTED,
    ProcessInfo,
    StopRequest,
    Timeouts,
    find_process_info,
    first_node,
    start,
)

JAX = {
    "JAX_COORDINATOR_ADDRESS": "there:5",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}
SLURM = {
    "SLURM_JOB_ID": "8205",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[007-009,012]",
    "SLURM_PROCID": "9",
}


def test_flags_come_before_the_launcher_and_that_before_the_cluster():
    everything = JAX | SLURM
    assert find_process_info("here:1", 3, 0, everything) == ProcessInfo(
        "here:1", 3, 0, "from flags"
    )
    assert find_process_info("", None, None, everything) == ProcessInfo(
        "there:5", 4, 2, "from JAX_*"
    )
    # 8205 = 2 x 4096 + 13
    assert find_process_info("", None, None, SLURM) == ProcessInfo(
        "gpu007:61453", 16, 9, "from SLURM"
    )
    assert find_process_info("", None, None, {"JAX_PLATFORMS": "cpu"}) is None


def test_a_batch_script_is_no_task_among_others():
    """Its environment describes the job; only srun makes a step of several tasks."""
    batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "JAX_PLATFORMS": "cpu"}
    assert find_process_info("", None, None, batch) is None
    assert find_process_info("", None, None, batch | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_a_tpu_pod_is_left_to_jax():
    info = find_process_info("", None, None, {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"})
    assert info == ProcessInfo(None, None, None, "from the TPU machine")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-0015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("gpu-[3]", "gpu-3"),
        ("rack[1-2]n.cluster", "rack1n.cluster"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("given", "environ", "message"),
    [
        (("here:1", None, 0), {}, "--num_processes=None --process_id=0: give all three or none"),
        (("", 2, None), {}, "give all three or none of them"),
        (("here", 2, 0), {}, r"coordinator 'here' \(from flags\): expected HOST:PORT"),
        (("here:1", 2, 2), {}, r"process 2 of 2 \(from flags\)"),
        (("", None, None), JAX | {"JAX_PROCESS_ID": "two"}, "JAX_PROCESS_ID='two': expected a who"),
        (("", None, None), {"JAX_PROCESS_ID": "0"}, "lacks JAX_COORDINATOR_ADDRESS, JAX_NUM_PROC"),
        (("", None, None), SLURM | {"SLURM_STEP_NODELIST": ""}, "expected a list of nodes"),
        (
            ("", None, None),
            SLURM | {"SLURM_STEP_NUM_TASKS": "x2"},
            "NUM_TASKS='x2': expected a who",
        ),
        (("", None, None), SLURM | {"SLURM_JOB_ID": "1x"}, "JOB_ID='1x': expected a who"),
    ],
)
def test_what_does_not_fit_is_refused(given, environ, message):
    with pytest.raises(InputError, match=message):
        find_process_info(*given, environ)


def test_timeouts_are_above_zero():
    with pytest.raises(InputError, match="--heartbeat_timeout=0: expected 1 to 1000000 seconds"):
        Timeouts(heartbeat=0)


@pytest.mark.parametrize("process", [0, 1])
def test_peers_that_never_come_are_not_waited_for_long(process):
    """The coordinator without its worker, the worker without its coordinator."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = (
        "import jax\n"
        "from cogview_jax.runtime.processes import ProcessInfo, Timeouts, start\n"
        f"info = ProcessInfo('localhost:{port}', 2, {process}, 'from flags')\n"
        "print('imported', flush=True)\n"
        "start(info, Timeouts(initialization=2))\n"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as lonely:
        assert lonely.stdout.readline() == "imported\n"
        began = time.monotonic()
        _, error = lonely.communicate(timeout=300)
    assert time.monotonic() - began < 30  # after 32 s jax would abort
    assert lonely.returncode == 1
    assert f"error: process {process} of 2 (from flags) did not meet all the others" in error
    assert f"at localhost:{port} within 2 s (--initialization_timeout)" in error


def test_alone_there_is_nothing_to_start():
    start(None, Timeouts())


def test_sigterm_is_a_request_while_it_is_listened_for():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_keeps_what_is_done_leaves_at_once_when_asked(root):
    program = (
        "import os, signal, time\n"
        "from cogview_jax.runtime.processes import leave_when_asked\n"
        "leave_when_asked()\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(300)\n"
        "finally:\n"
        "    print('cleaned up')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (PREEMPTED, "cleaned up\n")
    assert done.stderr == "asked to stop; run the same command again to go on\n"
