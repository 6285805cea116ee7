"""Requests to a real server that fails in every way: what is tried again, and what is said."""

import base64
import socket
from typing import ClassVar

import pytest

from cogview_jax.data.remote import failures, files
from cogview_jax.data.remote.failures import NotThere, failure_of
from cogview_jax.data.remote.files import RemoteStatus, file_status, read_range, read_whole
from cogview_jax.runtime.errors import InputError, SystemFault

DATA = bytes(range(256)) * 40


@pytest.fixture
def address(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    return f"{server.url}/a.bin"


def test_ranges_are_what_was_asked_for(server, address):
    status = file_status(address)
    assert status.size == len(DATA)
    assert status.tag.startswith('"')
    assert read_range(address, 300, 50, status) == DATA[300:350]
    assert read_range(address, len(DATA) - 5, 50, status) == DATA[-5:]
    assert read_range(address, len(DATA), 50, status) == b""
    assert server.ranges("/a.bin") == ["bytes=300-349", f"bytes={len(DATA) - 5}-{len(DATA) - 1}"]
    assert server.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("fault", [500, 502, 503, 504, 408, 429, "short", "reset"])
def test_what_may_pass_is_tried_again(server, address, fault, capsys):
    status = file_status(address)
    server.faults.extend([fault] * 3)
    assert read_range(address, 10, 200, status) == DATA[10:210]
    assert server.ranges("/a.bin") == ["bytes=10-209"] * 4


def test_what_does_not_pass_ends_with_the_number_of_tries(server, address):
    status = file_status(address)
    server.always["/a.bin"] = 503
    with pytest.raises(SystemFault, match=r"/a.bin: 503 Service Unavailable \(7 tries\)$"):
        read_range(address, 0, 10, status)
    assert len(server.ranges("/a.bin")) == 7


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (403, InputError, "403 Forbidden: check the address"),
        (401, InputError, "401 Unauthorized"),
        (404, NotThere, "404 Not Found"),
        (410, NotThere, "410 Gone"),
        (400, InputError, "400 Bad Request"),
        ("whole", InputError, "the server sends whole files"),
        ("other", InputError, "the server sends whole files"),
    ],
)
def test_what_cannot_pass_ends_at_once(server, address, fault, kind, said):
    status = file_status(address)
    server.always["/a.bin"] = fault
    with pytest.raises(kind) as caught:
        read_range(address, 7, 10, status)
    assert str(caught.value).startswith(f"{address}: {said}")
    assert server.ranges("/a.bin") == ["bytes=7-16"]


def test_a_silent_server_is_asked_again(server, address, monkeypatch):
    monkeypatch.setattr(files, "_SILENCE", 0.3)
    files.file_system.cache_clear()
    server.faults.append("hang")
    assert file_status(address).size == len(DATA)
    assert len(server.asked) >= 2
    files.file_system.cache_clear()


def test_nobody_there_is_a_fault(server, address, monkeypatch):
    monkeypatch.setattr(failures, "PAUSES", (0.001,))
    with pytest.raises(SystemFault, match=r"Connection refused \(2 tries\)"):
        file_status("http://127.0.0.1:9/a.bin")


class S3:
    """What is used of s3fs, of which an instance repeats requests as its client is told to."""

    retries = 5
    made: ClassVar[list] = []

    def __init__(self, config_kwargs=None, **storage_options):
        self.config_kwargs, self.storage_options = config_kwargs or {}, storage_options
        S3.made.append(self)

    def info(self, address):
        raise TimeoutError


def test_a_first_request_gives_up_soon(monkeypatch):
    monkeypatch.setattr(failures, "PAUSES", (0.001,) * 6)
    monkeypatch.setattr(S3, "made", [])
    patient = S3({"signature_version": "s3v4"}, use_listings_cache=False)
    monkeypatch.setattr(files, "file_system", lambda name: patient)
    with (
        pytest.raises(SystemFault, match=r"no answer in time \(3 tries\)"),
        failures.few_retries(2),
    ):
        file_status("s3://bucket/a.bin")
    hasty = S3.made[-1]
    assert hasty.retries == 1
    assert hasty.storage_options == {"use_listings_cache": False}
    assert hasty.config_kwargs.pop("retries") == {"total_max_attempts": 1}
    assert hasty.config_kwargs.pop("signature_version") == "s3v4"
    assert 3 * sum(hasty.config_kwargs.values()) + 2 < 25, "the most seconds, of all tries"
    made = len(S3.made)
    with pytest.raises(SystemFault, match=r"no answer in time \(7 tries\)"):
        file_status("s3://bucket/a.bin")
    assert len(S3.made) == made
    assert patient.retries == 5


@pytest.mark.parametrize("change", [b"x" + DATA[1:], DATA[:100], DATA + b"x", b""])
def test_a_file_that_changes_is_noticed(server, address, tmp_path, change):
    status = file_status(address)
    (tmp_path / "a.bin").write_bytes(change)
    with pytest.raises(InputError, match="changed while it was read: start again"):
        read_range(address, 50, 100, status)


def test_servers_without_versions_tell_changed_sizes(server, address, tmp_path):
    server.tags = False
    status = file_status(address)
    assert status == RemoteStatus(len(DATA), "")
    assert read_range(address, 0, 3, status) == DATA[:3]
    (tmp_path / "a.bin").write_bytes(DATA + b"x")
    with pytest.raises(InputError, match="changed"):
        read_range(address, 0, 3, status)


def test_whole_files(server, address, tmp_path):
    assert read_whole(address, len(DATA)) == DATA
    with pytest.raises(InputError, match=f"{len(DATA)} bytes, expected at most 5"):
        read_whole(address, 5)
    (tmp_path / "a.bin").write_bytes(b"")
    assert read_whole(address, 5) == b""


def test_secrets_are_in_no_message(server, address, monkeypatch):
    monkeypatch.setenv("TOKEN", "sig=secret")
    queried = f"{address}?$TOKEN"
    assert file_status(queried).size == len(DATA)
    assert server.asked[-1][1] == "/a.bin?sig=secret"
    for fault in (400, 403, 404, 500, "reset", "whole"):
        server.always["/a.bin"] = fault
        with pytest.raises((InputError, SystemFault)) as caught:
            file_status(queried)
        assert "?$TOKEN" in str(caught.value)
        assert "secret" not in str(caught.value)


def test_a_server_may_ask_for_a_longer_pause(server, address, monkeypatch):
    pauses = []
    monkeypatch.setattr(failures.time, "sleep", pauses.append)
    server.answer_headers = {"Retry-After": "7"}
    server.faults.append(429)
    file_status(address)
    assert 7.0 in pauses


def test_pauses_grow_and_differ(server, address, monkeypatch):
    pauses = []
    monkeypatch.setattr(failures, "PAUSES", (1.0, 2.0, 4.0))
    monkeypatch.setattr(failures.time, "sleep", lambda s: pauses.append(s) if s else None)
    server.faults.extend([503] * 3)
    file_status(address)
    for mean, pause in zip((1.0, 2.0, 4.0), pauses, strict=True):
        assert mean / 2 <= pause <= mean * 1.5
    assert pauses != [1.0, 2.0, 4.0]


class NoCredentialsError(Exception):
    """As botocore has it."""


class ClientError(Exception):
    """As botocore has it."""

    def __init__(self, status):
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing", "denied", "missing"),
    [
        (caused(FileNotFoundError("x"), ClientError(503)), True, False, False),
        (caused(OSError(16, "busy"), ClientError(503)), True, False, False),
        (FileNotFoundError("x"), False, False, True),
        (PermissionError("x"), False, True, False),
        (OSError("Forbidden: b/x\nno"), False, True, False),
        (NoCredentialsError(), False, True, False),
        (TimeoutError(), True, False, False),
        (ConnectionResetError(104, "x"), True, False, False),
        (ValueError("x"), False, False, False),
    ],
)
def test_errors_of_other_services(error, passing, denied, missing):
    found = failure_of(error)
    assert (found.passing, found.denied, found.missing) == (passing, denied, missing)


class EndpointConnectionError(ConnectionError):
    """As botocore has it."""

    def __init__(self, **kwargs):
        super().__init__("Could not connect to the endpoint URL")
        self.kwargs = kwargs


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConnectionRefusedError(111, "Connect call failed"), "Connection refused"),
        (socket.gaierror(-2, "unknown"), "the name of the server cannot be resolved"),
        ("refused", "the connection broke off"),
    ],
)
def test_what_botocore_could_not_connect_by_is_said(error, why):
    found = failure_of(EndpointConnectionError(endpoint_url="http://h", error=error))
    assert (found.why, found.passing) == (why, True)


def test_a_password_stands_in_netrc(server, address, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    file_status(address)
    assert server.headers["Authorization"] == f"Basic {base64.b64encode(b'me:secret').decode()}"


def test_texts_of_errors_that_may_hold_an_address_are_not_shown():
    assert failure_of(OSError(22, "a bad name")).why == "cannot be read ([Errno 22] a bad name)"
    assert failure_of(ValueError("https://h?sig=secret")).why == "cannot be read (ValueError)"
