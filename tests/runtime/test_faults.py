"""Faults that pass are waited out; those that stay are no fault of the user's."""

import errno
import os
from pathlib import Path

import pytest

from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import (
    at_work,
    is_fault,
    is_passing,
    raise_faults,
    retried,
    system_error,
)


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


SAID = {
    "pread() failed: Input/output error; reading /a; at byte 9289; Could not read": errno.EIO,
    "open() failed: Too many open files; opening /a": errno.EMFILE,
    "pread() failed: Stale file handle; reading /a": errno.ESTALE,
    "UNAVAILABLE: [os_error_code='12'] reading": errno.ENOMEM,
    "write() failed: No space left on device; writing /a; at byte 262144": errno.ENOSPC,
    "UNKNOWN: Gloo AllGather failed: Connection closed by peer [::1]:5": errno.ECONNRESET,
    "Gloo all-reduce failed: [a.cc] Read error [::1]:5: Connection reset by peer": errno.ECONNRESET,
    "NOT_FOUND: [OS error 2: No such file or directory]": errno.ENOENT,
}


@pytest.mark.parametrize("text", SAID)
def test_what_the_system_said_is_found(text):
    assert system_error(RuntimeError(text)).errno == SAID[text]


def test_damage_is_no_error_of_the_system():
    text = "Corrupted Riegeli/records file: block header hash mismatch; at byte 65560"
    assert system_error(RuntimeError(text)) is None
    assert system_error(ValueError("failed: to be anything")) is None


@pytest.mark.parametrize(
    "text", [text for text, code in SAID.items() if is_passing(OSError(code, ""))]
)
def test_only_what_may_pass_is_raised_as_an_error_of_the_system(text):
    def fail(text):
        raise RuntimeError(text)

    with pytest.raises(OSError, match=r".") as caught:
        raise_faults(lambda: fail(text))
    assert caught.value.errno == SAID[text]
    with pytest.raises(RuntimeError, match="OS error 2"):
        raise_faults(lambda: fail("[OS error 2: No such file or directory]"))


def test_a_system_error_is_found_behind_that_of_a_library():
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
