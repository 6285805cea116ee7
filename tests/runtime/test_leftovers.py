"""What killed programs leave goes; what the living write, and what is the user's, stays."""

import os
import signal
import subprocess
import sys

from cogview_jax.runtime.leftovers import aside_path, remove_leftovers, temporary_path


def names(directory):
    return sorted(path.name for path in directory.iterdir())


HALF = """
import os, signal, sys
from pathlib import Path
from cogview_jax.runtime import leftovers
if len(sys.argv) > 2:
    leftovers._host = lambda: "0123abcd"
path = leftovers.temporary_path(Path(sys.argv[1]) / "image.png")
path.mkdir()
(path / "half").write_text("half")
print(path.name, flush=True)
sys.stdin.read()
"""


def start(root, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", HALF, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


def test_only_what_dead_processes_left_goes(root, tmp_path):
    theirs = [".tmp-notes", ".cogview-tmp-mine", ".cogview", "image.png.tmp", "tmp"]
    for name in theirs:
        (tmp_path / name).write_text("mine")
    own = temporary_path(tmp_path / "own.bin")
    own.write_text("being written")
    process, left = start(root, tmp_path)
    elsewhere, far = start(root, tmp_path, "another machine")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*theirs, own.name, left, far])
    for each in (process, elsewhere):
        each.send_signal(signal.SIGKILL)
        each.communicate()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*theirs, own.name, far])
    remove_leftovers(tmp_path, owned=True)
    assert names(tmp_path) == sorted([*theirs, own.name])
    remove_leftovers(tmp_path / "absent")


def test_names_are_new_and_short_enough(tmp_path):
    long = tmp_path / ("图" * 80 + ".json")
    first, second = temporary_path(long), temporary_path(long)
    assert first != second
    assert first.parent == tmp_path
    assert first.suffix == ".json"
    first.write_text("fits")
    assert aside_path(tmp_path / "bundle").name.endswith("-bundle")
