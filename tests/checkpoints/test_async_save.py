"""Disks that fill up, processes that are killed, and our own mistakes, while a state is written."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from checkpoints.small import assert_equal, names, restored, saved, small

from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.checkpoints.retention import Retention


def test_what_is_no_fault_of_the_disk_is_raised(tmp_path):
    lost = small(3)
    lost.params["kernel"].delete()
    with Checkpointer(tmp_path / "c") as checkpointer:
        with pytest.raises(RuntimeError, match="Array has been deleted"):
            checkpointer.save(3, lost)
        assert not checkpointer.wait()
        checkpointer.save(3, small(3).replace(model_state={"codes": np.array(["text"])}))
        with pytest.raises(ValueError, match="Unsupported data type"):
            checkpointer.wait()
        assert not checkpointer.wait()
        checkpointer.save(3, small(3))
        assert checkpointer.wait()
    assert names(tmp_path / "c") == ["3"]


def start(root, code):
    """A program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"},
    )


FULL = """
import resource, shutil
from pathlib import Path
from checkpoints.small import *
from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.checkpoints.retention import Retention

def fill(directory, limit):
    {fill}

def make_room(directory):
    {make_room}

directory = Path({directory!r})
with Checkpointer(directory, Retention(1)) as checkpointer:
    checkpointer.save(1, large(1))
    assert checkpointer.wait()
    for limit in {limits}:
        fill(directory, limit)
        checkpointer.save(2, large(2))
        assert not checkpointer.wait()
        make_room(directory)
        assert_equal(checkpointer.restore(shapes_of(large(0))), large(1))
    checkpointer.save(3, large(3))
    assert checkpointer.wait()
    assert_equal(checkpointer.restore(shapes_of(large(0))), large(3))
print(names(directory))
"""


def run_full(root, directory, **program):
    done = start(root, FULL.format(directory=str(directory), **program))
    output, errors = done.communicate(timeout=300)
    assert done.returncode == 0, errors
    assert output == "['3']\n"
    return errors.splitlines()


def test_files_that_cannot_grow_fail_the_checkpoint_and_not_the_run(root, tmp_path):
    """Whichever file it is: arrays, Orbax's descriptions, or ours."""
    limits = (1_000_000, 3000, 700, 300, 100)
    lines = run_full(
        root,
        tmp_path / "c",
        limits=limits,
        fill="resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))",
        make_room="resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)",
    )
    expected = f"checkpoint {tmp_path}/c/2 was not saved: File too large; training goes on,"
    assert lines == [f"{expected} checkpoint 1 is kept"] * len(limits)


def test_a_full_disk_fails_the_checkpoint_and_not_the_run(root, disk):
    """Known beforehand from its free bytes, or met while writing: others fill it meanwhile."""
    lines = run_full(
        root,
        disk / "c",
        limits=("known", "met"),
        fill="""
    free = shutil.disk_usage(directory).free
    if limit == "met":
        import types
        from cogview_jax.checkpoints import async_save
        usage = shutil.disk_usage(directory)  # as it was when it was asked
        async_save.shutil = types.SimpleNamespace(
            disk_usage=lambda path: usage, rmtree=shutil.rmtree
        )
    (directory.parent / "other").write_bytes(bytes(free - 2_000_000))""",
        make_room='(directory.parent / "other").unlink()',
    )
    assert lines == [
        f"checkpoint {disk}/c/2 was not saved: it needs 4.2 MB, and 2.0 MB are free; training goes"
        " on, checkpoint 1 is kept",
        f"checkpoint {disk}/c/2 was not saved: No space left on device; training goes on,"
        " checkpoint 1 is kept",
    ]


KILLED = """
import os, re, signal, sys
from pathlib import Path
from checkpoints.small import saved
from cogview_jax.checkpoints.retention import Retention

directory = Path({directory!r})
saved(directory, 1, retention=Retention(1))

def kill(event, arguments):
    paths = [Path(str(path)).name for path in arguments[:2]]
    if event == {event!r} and any(re.fullmatch({name!r}, path) for path in paths):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
saved(directory, 2, retention=Retention(1))
"""
#: When -> (what Python does then, with a file of which name, the checkpoint that is left).
MOMENTS = {
    "hashed, not named": ("os.rename", "2", 1),
    "named, the old one still there": ("os.rename", "1", 2),
    "the old one half deleted": ("shutil.rmtree", r"\.cogview-tmp-.*-1", 2),
}


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(root, tmp_path):
    """Where only one is kept, too: the old one goes when the new one is whole and on disk."""
    running = {}
    for moment, (event, name, _) in MOMENTS.items():
        code = KILLED.format(directory=str(tmp_path / moment), event=event, name=name)
        running[moment] = start(root, code)
    for moment, process in running.items():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, (moment, errors)
    for moment, (*_, step) in MOMENTS.items():
        directory = tmp_path / moment
        assert len(names(directory)) == 2, moment
        assert_equal(restored(directory), small(step))
        saved(directory, 2, 3, retention=Retention(1))
        assert names(directory) == ["3"]
        assert not (tmp_path / "damaged").exists()
