"""Worker processes compute what this one would, say what went wrong, and outlive nobody."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.workers import computed, cores


def square(number):
    print("what is printed is no answer")
    return number**2, os.getpid()


def refuse(number):
    if number == 2:
        raise InputError(f"{number}: expected another")
    return number


def end(number):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_come_in_order_from_several_processes(unbuffered, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    results = list(computed(square, range(40), 2, "squares"))
    assert [value for value, _ in results] == [i**2 for i in range(40)]
    assert 1 <= len({pid for _, pid in results} - {os.getpid()}) <= 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines().count("what is printed is no answer") == 40


@pytest.mark.parametrize(("arguments", "processes"), [(range(5), 1), ([3], 4), ([], 4)])
def test_little_work_is_done_in_this_process(arguments, processes):
    results = list(computed(square, arguments, processes, "squares"))
    assert results == [(i**2, os.getpid()) for i in arguments]


def test_what_a_function_raises_comes_after_the_results_before_it():
    results = computed(refuse, [0, 1, 2, 3], 2, "numbers")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(InputError, match="2: expected another"):
        next(results)


def test_a_killed_worker_is_a_fault_of_the_machine():
    with pytest.raises(SystemFault, match=r"numbers: a worker process ended \(status -9\)"):
        list(computed(end, [0, 1], 2, "numbers"))


def test_a_system_that_tells_no_cores_of_a_process_gives_it_all(monkeypatch):
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()


def test_workers_end_with_their_process(root, tmp_path):
    awake = tmp_path / "awake"
    (tmp_path / "sleepy.py").write_text(
        "import os, time\n"
        "def nap(path):\n"
        "    open(path, 'w').write(str(os.getpid()))\n"
        f"    while not os.path.exists({str(awake)!r}): time.sleep(0.01)\n"
    )
    names = [str(tmp_path / f"pid{i}") for i in range(4)]
    code = (
        "from sleepy import nap\n"
        "from cogview_jax.runtime.workers import computed\n"
        f"list(computed(nap, {names!r}, 2, 'naps'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{root}:{tmp_path}"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not all(Path(name).exists() and Path(name).read_text() for name in names[:2]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    awake.touch()
    pids = [Path(name).read_text() for name in names[:2]]
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not any(Path(name).exists() for name in names[2:])


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
