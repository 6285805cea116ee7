"""Faults that pass are waited out; those that stay are no fault of the user's."""

import errno
import os
from pathlib import Path

import pytest

from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import at_work, is_fault, retried, system_error


@pytest.fixture
def pauses(monkeypatch):
    """Those that are made, without waiting."""
    made = []
    monkeypatch.setattr(faults.time, "sleep", made.append)
    return made


def failing(times, code):
    """A function that fails so often, and then gives 7."""
    calls = iter(range(times))

    def work():
        if next(calls, None) is not None:
            raise MemoryError if code is None else OSError(code, os.strerror(code), "a.png")
        return 7

    return work


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, None])
def test_what_passes_is_waited_out(code, pauses, capsys):
    assert retried(failing(3, code), "a.png") == 7
    assert pauses == list(faults.PAUSES[:3])
    assert capsys.readouterr().err.count("\n") == 1


def test_what_stays_is_a_fault(pauses):
    with pytest.raises(SystemFault, match=r"^a.png: Input/output error \(6 tries\)$"):
        retried(failing(99, errno.EIO), "a.png")
    assert sum(pauses) == sum(faults.PAUSES)


def test_what_does_not_pass_is_raised_at_once(pauses):
    with pytest.raises(FileNotFoundError):
        retried(failing(1, errno.ENOENT), "a.png")
    with pytest.raises(OSError, match="No space left"):
        retried(failing(1, errno.ENOSPC), "a.png")
    assert pauses == []


def test_a_system_error_is_found_in_the_words_of_libraries():
    full = RuntimeError("INTERNAL: append failed: No space left on device; path: x")
    assert system_error(full).errno == errno.ENOSPC
    tensor = ValueError("DATA_LOSS [tensorstore_spec=...] [os_error_code='5'] [source ...]")
    assert system_error(tensor).errno == errno.EIO
    peer = RuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [::1]:5")
    assert system_error(peer).errno == errno.ECONNRESET
    assert system_error(ValueError("five")) is None
    for code, found in ((errno.EIO, True), (errno.ENOENT, False)):
        wrapped = ValueError("could not read dataset info")
        wrapped.__cause__ = OSError(code, os.strerror(code), "dataset_info.json")
        assert (system_error(wrapped) is wrapped.__cause__) == found
    assert not is_fault(FileNotFoundError(errno.ENOENT, "No such file", "x"))


def test_at_work_nothing_is_bad_input():
    gone = "^/not/there: No such file or directory; all is kept$"
    with pytest.raises(SystemFault, match=gone), at_work("all is kept"):
        Path("/not/there").read_bytes()
    with pytest.raises(SystemFault, match=r"^not enough memory; all is"), at_work("all is kept"):
        raise MemoryError
    for own in (InputError("bad"), SystemFault("a.png: gone"), KeyError("defect")):
        with pytest.raises(type(own)) as raised, at_work("all is kept"):
            raise own
        assert raised.value is own
