"""A program that stands still ends, and says where it stood; one that goes on does not.

The program's clock is its own, so that a busy machine changes nothing.
"""

import subprocess
import sys

import pytest

PROGRAM = """
import threading, time
from cogview_jax.runtime import watchdog

class Clock:
    '''Moves when it is told to; `looked` counts how often the watchdog's thread read it.'''
    now, looked = 0.0, 0

    def monotonic(self):
        if threading.current_thread().name == "watchdog":
            self.looked += 1
        return self.now

    def move(self, seconds):
        '''Returns when the watchdog has seen the new time.'''
        self.now += seconds
        before = self.looked
        while self.looked < before + 2:
            time.sleep(0.01)

def reading_the_disk():
    clock.move(0.7)
    time.sleep(600)

clock = watchdog.time = Clock()
with watchdog.Watchdog(0.6, "process 3 on gpu007", grace=600) as guard:
    for step in range(4):
        guard.beat(f"step {step}")
        clock.move(0.4)
    {then}
print("done")
"""
LOCKED = """
import ctypes
from cogview_jax.runtime.watchdog import Watchdog

reading = ctypes.PyDLL(None).sleep
with Watchdog(2, "process 3 on gpu007", grace=0.2) as guard:
    guard.beat("step 1")
    reading(600)
print("done")
"""
UNWATCHED = """
import threading
from cogview_jax.runtime.watchdog import Watchdog

with Watchdog(0, "process 3 on gpu007") as guard:
    guard.beat("step 1")
    assert threading.active_count() == 1
print("done")
"""


def run(program):
    """The program in a process of its own; the limit only guards against hanging."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_standing_still_ends_the_process_and_is_explained():
    then = "guard.beat('the batch of step 5'); reading_the_disk()"
    result = run(PROGRAM.replace("{then}", then))
    assert result.returncode == 1
    assert "error: process 3 on gpu007 stood still for 0.6 s (--stall_timeout)" in result.stderr
    assert "the batch of step 5. Its threads were here:" in result.stderr
    assert "in reading_the_disk" in result.stderr
    assert "done" not in result.stdout


@pytest.mark.parametrize("then", ["pass", "guard.rest(); clock.now += 100; time.sleep(1)"])
def test_what_goes_on_or_may_take_long_is_left_alone(then):
    result = run(PROGRAM.replace("{then}", then))
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_code_that_holds_the_interpreter_lock_is_ended_too():
    """No thread of Python runs meanwhile: PyDLL keeps the lock while the function of C sleeps."""
    result = run(LOCKED)
    assert result.returncode == 1
    assert "Timeout (0:00:02.2" in result.stderr
    assert "line 8 in <module>" in result.stderr
    assert "done" not in result.stdout


def test_no_timeout_is_no_watch():
    result = run(UNWATCHED)
    assert (result.returncode, result.stdout) == (0, "done\n")
