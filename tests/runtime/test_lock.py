"""A lock is held by one, told about to others, and gone with the process that held it."""

import os
import signal
import subprocess
import sys

import pytest

from cogview_jax.runtime import lock
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.lock import claimed, locked

HOLD = """
import sys
from pathlib import Path
from cogview_jax.runtime.lock import locked
with locked(Path(sys.argv[1]), "the folder", "choose another"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(root, tmp_path):
    """Another process that holds tmp_path/new/.lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "new" / ".lock", "-x", "two\nlines"],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


def test_the_second_hears_who_holds_it(holder, tmp_path, hasty):
    file = tmp_path / "new" / ".lock"
    with pytest.raises(InputError) as refused, locked(file, "the workdir w", "choose another"):
        pass
    assert str(refused.value).startswith(f"the workdir w is in use by process {holder.pid} on ")
    assert str(refused.value).endswith("-x two lines): wait until it ends, or choose another")
    holder.communicate(input="")
    assert not (tmp_path / "new").exists()
    with locked(file, "the workdir w", "choose another"):
        assert file.exists()


def test_it_ends_with_its_process_however_that_ends(holder, tmp_path, hasty):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    file = tmp_path / "new" / ".lock"
    assert file.exists()
    with locked(file, "the workdir", "choose another"):
        assert f'"process": {os.getpid()},' in file.read_text()
    assert not file.exists()


def test_a_killed_holder_is_waited_for(holder, tmp_path):
    holder.send_signal(signal.SIGINT)  # it ends in a moment, and removes the folder
    with locked(tmp_path / "new" / ".lock", "the workdir", "choose another"):
        assert holder.wait() != 0


def test_one_process_does_not_hold_it_twice(tmp_path, hasty):
    file = tmp_path / ".lock"
    with locked(file, "the folder", "wait"):
        with pytest.raises(InputError, match="in use"), locked(file, "the folder", "wait"):
            pass
        assert file.exists()
    assert not file.exists()


def test_only_folders_made_for_it_go(tmp_path, hasty):
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b" / ".lock", "it", "wait"):
        (tmp_path / "a" / "work").write_text("done")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["work"]


def test_where_nothing_can_be_locked_it_is_said(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, operation):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with locked(tmp_path / ".lock", "the store", "wait"):
        pass
    assert capsys.readouterr().err.startswith("the store cannot be locked on its file system")


def test_a_claim_is_not_waited_for(holder, tmp_path):
    file = tmp_path / "new" / ".lock"
    for fresh in (True, False):
        with claimed(file, fresh=fresh) as mine:
            assert not mine
    assert file.exists()
    holder.kill()
    holder.wait()
    with claimed(file, fresh=True) as mine:  # its file says that it may be alive elsewhere
        assert not mine
    with claimed(file, fresh=False) as mine:
        assert mine
        with claimed(file, fresh=False) as again:
            assert not again
    assert not file.exists()
    with claimed(file, fresh=True) as mine:
        assert mine
        assert f'"process": {os.getpid()},' in file.read_text()
