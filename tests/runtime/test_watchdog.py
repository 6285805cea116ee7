"""A program that stands still ends, and says where it stood; one that goes on does not."""

import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, time
from cogview_jax.runtime.watchdog import Watchdog

def reading_the_disk():
    time.sleep(60)

with Watchdog(0.6, "process 3 on gpu007") as watchdog:
    for step in range(4):
        watchdog.beat(f"step {step}")
        time.sleep(0.3)
    {then}
print("done")
"""


def run(then):
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{then}", then)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    return result, time.monotonic() - began


def test_standing_still_ends_the_process_and_is_explained():
    result, seconds = run("watchdog.beat('the batch of step 5'); reading_the_disk()")
    assert result.returncode == 1
    assert seconds < 20
    assert "error: process 3 on gpu007 stood still for 0.6 s (--stall_timeout)" in result.stderr
    assert "the batch of step 5. Its threads were here:" in result.stderr
    assert "in reading_the_disk" in result.stderr
    assert "done" not in result.stdout


@pytest.mark.parametrize("then", ["pass", "watchdog.rest(); time.sleep(1.5)"])
def test_what_goes_on_or_may_take_long_is_left_alone(then):
    result, _ = run(then)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_code_that_holds_the_interpreter_lock_is_ended_too():
    """No thread of Python runs meanwhile: PyDLL keeps the lock while the function of C sleeps."""
    program = PROGRAM.replace('gpu007")', 'gpu007", grace=0.2)').replace(
        "{then}", "import ctypes; reading = ctypes.PyDLL(None).sleep; reading(20)"
    )
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert result.returncode == 1
    assert time.monotonic() - began < 15
    assert "Timeout (0:00:00.8" in result.stderr
    assert "line 12 in <module>" in result.stderr
    assert "done" not in result.stdout


def test_no_timeout_is_no_watch():
    result, _ = run("")
    assert result.returncode == 0
    program = PROGRAM.replace("0.6", "0").replace("{then}", "time.sleep(1.2)")
    assert subprocess.run([sys.executable, "-c", program], timeout=50).returncode == 0
