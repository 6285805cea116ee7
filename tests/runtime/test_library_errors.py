"""Errors of the system in the words of libraries, as array_record and tensorstore say them."""

import errno

import pytest

from cogview_jax.runtime.library_errors import raise_faults, system_error

SAID = {
    "pread() failed: Input/output error; reading /a; at byte 9289; Could not read": errno.EIO,
    "open() failed: Too many open files; opening /a": errno.EMFILE,
    "pread() failed: Stale file handle; reading /a": errno.ESTALE,
    "UNAVAILABLE: [os_error_code='12'] reading": errno.ENOMEM,
    "NOT_FOUND: [OS error 2: No such file or directory]": errno.ENOENT,
}


@pytest.mark.parametrize("text", SAID)
def test_what_the_system_said_is_found(text):
    assert system_error(RuntimeError(text)).errno == SAID[text]


def test_damage_is_no_error_of_the_system():
    text = "Corrupted Riegeli/records file: block header hash mismatch; at byte 65560"
    assert system_error(RuntimeError(text)) is None
    assert system_error(ValueError("failed: to be anything")) is None


@pytest.mark.parametrize("text", [text for text in SAID if SAID[text] != errno.ENOENT])
def test_only_what_may_pass_is_raised_as_an_error_of_the_system(text):
    def fail(text):
        raise RuntimeError(text)

    with pytest.raises(OSError, match=r".") as caught:
        raise_faults(lambda: fail(text))
    assert caught.value.errno == SAID[text]
    with pytest.raises(RuntimeError, match="OS error 2"):
        raise_faults(lambda: fail("[OS error 2: No such file or directory]"))
