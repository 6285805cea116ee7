"""The supervisor with real processes, small ones."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LOCAL = Path(__file__).resolve().parents[2] / "launch" / "local.py"


def start(code, *options, n=2):
    """The supervisor over n copies of a Python program."""
    command = [sys.executable, LOCAL, "-n", n, *options, "--", sys.executable, "-uc", code]
    pipe = subprocess.PIPE
    return subprocess.Popen([str(part) for part in command], stdout=pipe, stderr=pipe, text=True)


def run(code, *options, n=2):
    process = start(code, *options, n=n)
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def wait_for(path, count=1):
    """Until a file holds so many lines, written by the processes."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return path.read_text().split()
        time.sleep(0.01)
    raise AssertionError(f"{path} never had {count} lines")


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def all_end(pids):
    """Whether processes that were sent SIGKILL end, which need not be at once."""
    deadline = time.monotonic() + 300
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


PLACE = """
import os
print(os.environ["JAX_PROCESS_ID"], os.environ["JAX_NUM_PROCESSES"],
      os.environ["JAX_COORDINATOR_ADDRESS"], os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


def test_processes_are_told_their_place_and_speak_in_whole_lines():
    status, out, err = run(PLACE, "--gpus_per_process", 2, n=3)
    assert (status, err) == (0, "")
    lines = sorted(out.splitlines())
    address = lines[0].split()[3]
    assert re.fullmatch(r"localhost:\d+", address)
    assert lines == [f"[{i}] {i} 3 {address} {2 * i},{2 * i + 1}" for i in range(3)]


def test_several_machines_share_a_coordinator():
    options = ("--nodes", 3, "--node_rank", 1, "--coordinator", "head:99")
    status, out, _ = run(PLACE, *options)
    assert status == 0
    assert sorted(out.splitlines()) == ["[2] 2 6 head:99 None", "[3] 3 6 head:99 None"]


def test_a_cluster_that_tells_them_is_left_to():
    code = "import os; print('JAX_PROCESS_ID' in os.environ)"
    assert run(code, "--detect", n=1) == (0, "False\n", "")


def test_the_chatter_of_gloo_is_not_passed_on():
    code = (
        "print('[Gloo] Rank 0 is connected'); print('0 is connected to 3 peer ranks.'); print('x')"
    )
    assert run(code, n=1)[1] == "x\n"


FAIL = """
import os, sys, time
open({log!r}, "a").write("start\\n")
if os.environ["JAX_PROCESS_ID"] == "1":
    while open({log!r}).read().count("start") % 2:  # the other one is not up yet
        time.sleep(0.01)
    print("last words")
    {end}
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        ("sys.exit(3)", r"process 1 exited with 3 \(failure\) after \d+ s"),
        ("os.kill(os.getpid(), 9)", r"process 1 was killed by SIGKILL after \d+ s"),
        ("os.abort()", r"process 1 was killed by SIGABRT after \d+ s: it lost a peer, or crashed"),
    ],
)
def test_a_failure_ends_all_and_starts_all_again_until_it_is_enough(end, cause, tmp_path):
    code = FAIL.format(log=str(tmp_path / "log"), end=end)
    began = time.monotonic()
    status, out, err = run(code, "--max_restarts", 2, "--backoff", 0.3)
    assert status == 1
    # Two pauses of 0.3 and 0.6 s.
    assert time.monotonic() - began > 0.9
    assert (tmp_path / "log").read_text().count("start") == 6
    assert out.count("[1] last words") == 3
    lines = err.splitlines()
    assert re.fullmatch(f"launch: {cause}; ending the others", lines[0])
    assert re.fullmatch(rf"launch: {cause}; restart 1 of 2 in 0\.3 s", lines[1])
    assert re.fullmatch(rf"launch: {cause}; restart 2 of 2 in 0\.6 s", lines[3])
    assert re.fullmatch(rf"launch: {cause}; given up after 3 attempts \(--max_restarts\)", lines[5])


def test_who_fails_for_itself_is_the_cause_and_not_who_lost_it(tmp_path):
    log = str(tmp_path / "log")
    code = (
        f"import os, time\n"
        f"if os.environ['JAX_PROCESS_ID'] == '0':\n"
        f"    while not os.path.exists({log!r}): time.sleep(0.01)\n"
        f"    os.abort()\n"
        f"open({log!r}, 'w').close()\n"
        f"os._exit(1)"
    )
    _, _, err = run(code, "--max_restarts", 0, n=2)
    assert "process 1 exited with 1 (failure)" in err.splitlines()[-1]


def test_an_attempt_that_ran_well_for_long_makes_failures_count_anew(tmp_path):
    log = tmp_path / "log"
    code = (
        f"import sys, time; f = open({str(log)!r}, 'a'); f.write('x\\n'); f.close();"
        f"n = open({str(log)!r}).read().count('x'); time.sleep(0.6); sys.exit(n < 5)"
    )
    options = ("--max_restarts", 1, "--healthy", 0.5, "--backoff", 0.01)
    assert run(code, *options, n=1)[0] == 0
    assert run(code.replace("n < 5", "n < 9"), "--max_restarts", 1, "--backoff", 0.01, n=1)[0] == 1


def test_bad_input_is_not_tried_again(tmp_path):
    code = FAIL.format(log=str(tmp_path / "log"), end="sys.exit(2)")
    status, _, err = run(code)
    assert status == 2
    assert (tmp_path / "log").read_text().count("start") == 2
    last = err.splitlines()[-1]
    assert re.search(r"exited with 2 \(bad input\) after \d+ s; not started again$", last)


def test_processes_that_were_asked_to_stop_by_others_are_started_at_once(tmp_path):
    log = tmp_path / "log"
    code = (
        f"import sys; f = open({str(log)!r}, 'a'); f.write('x\\n'); f.close();"
        f"sys.exit(75 if open({str(log)!r}).read().count('x') < 2 else 0)"
    )
    status, _, err = run(code, "--backoff", 30, n=1)
    assert status == 0
    assert "all processes were asked to stop and have saved; restart 1 of 10 in 0.0 s" in err


STOP = """
import os, signal, sys, time
def stop(*_):
    {stop}
signal.signal(signal.SIGTERM, stop)
open({log!r}, "a").write(f"{{os.getpid()}}\\n")
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_passed_on(number, tmp_path):
    process = start(STOP.format(log=str(tmp_path / "log"), stop="sys.exit(75)"))
    wait_for(tmp_path / "log", 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75
    assert err == "launch: asked to stop: all processes were asked to stop and have saved\n"


def test_who_does_not_stop_is_ended_after_the_grace(tmp_path):
    process = start(STOP.format(log=str(tmp_path / "log"), stop="pass"), "--grace", 1)
    pids = wait_for(tmp_path / "log", 2)
    began = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert time.monotonic() - began > 0.9
    assert process.returncode == 1
    assert "process 0, 1 did not stop within 1 s" in err
    assert all_end(pids)


def test_a_second_interrupt_ends_everything_at_once(tmp_path):
    log = tmp_path / "log"
    stop = f"open({str(log)!r}, 'a').write('asked\\n')"
    process = start(STOP.format(log=str(log), stop=stop), "--grace", 600)
    pids = wait_for(log, 2)
    process.send_signal(signal.SIGINT)
    assert wait_for(log, 4)[2:] == ["asked"] * 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 1
    assert all_end(pids)


def test_what_a_process_has_started_ends_with_it(tmp_path):
    log = tmp_path / "log"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(log)!r}, 'a').write(f'{{child.pid}}\\n')\n"
        "sys.exit(1)"
    )
    assert run(code, "--max_restarts", 0, n=1)[0] == 1
    assert all_end(wait_for(log))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_supervisor_that_is_killed_leaves_no_process(tmp_path):
    process = start(STOP.format(log=str(tmp_path / "log"), stop="pass"))
    pids = wait_for(tmp_path / "log", 2)
    process.kill()
    process.wait()
    assert all_end(pids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no command is given"),
        (("-n", "0", "--", "true"), "expected at least one process"),
        (("--nodes", "2", "--node_rank", "2", "--", "true"), "a rank below --nodes"),
        (("--nodes", "2", "--", "true"), "--nodes above 1 needs --coordinator HOST:PORT"),
        (("--grace", "-1", "--", "true"), "are 0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    result = subprocess.run(
        [sys.executable, LOCAL, *options], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 2
    assert message in result.stderr


def test_it_starts_where_nothing_is_installed():
    command = [sys.executable, "-ISc", f"exec(open({str(LOCAL)!r}).read().split('if __name__')[0])"]
    subprocess.run(command, check=True, timeout=300, env={"PATH": os.environ["PATH"]})
