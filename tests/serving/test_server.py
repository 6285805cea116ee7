"""The command itself: a process that serves, and ends when it is told to."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from pipeline.small import PROMPTS

from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.runtime.errors import InputError
from cogview_jax.serving import extra
from cogview_jax.serving.settings import Limits


def test_without_its_libraries_it_says_how_to_install_them(monkeypatch):
    monkeypatch.setitem(extra.NEEDED, "starlette", "no_such_module")
    with pytest.raises(InputError, match=r"pip install 'cogview-jax\[serve\]'"):
        extra.need_extra()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"images": 0}, "--most_images 0: expected at least 1"),
        ({"waiting": 10**6}, "--most_waiting 1000000: expected at most"),
        ({"seconds": float("nan")}, "--seconds nan: expected above 0"),
    ],
)
def test_limits_out_of_range_are_refused(limits, message):
    with pytest.raises(InputError, match=message):
        Limits(**limits)


@pytest.fixture
def start(root, tmp_path, parts):
    pytest.importorskip("starlette", reason="needs the extra [serve]")
    pytest.importorskip("uvicorn", reason="needs the extra [serve]")
    pytest.importorskip("python_multipart", reason="needs the extra [serve]")
    write_bundle(tmp_path / "small", **parts)
    started = []

    def start(*flags):
        command = [sys.executable, "-m", "cogview_jax.serve", "--bundle", str(tmp_path / "small")]
        environment = os.environ | {"PYTHONPATH": str(root)}
        process = subprocess.Popen(
            [*command, *flags], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()


def asked(port, *request):
    """Status, headers and JSON of the answer to a request of its own connection."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as client:
        client.request(*request)
        return finished(client, "")


def finished(connection, rest):
    """The same of a request whose rest is sent."""
    connection.send(rest.encode())
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), json.loads(response.read())


def test_it_serves_finishes_what_it_has_when_it_is_told_to_end_and_exits_with_0(start):
    process = start("--port", "0", "--rows", "2", "--parallel_window", "4")
    for line in process.stderr:
        if found := re.search(r"small is ready: http://127\.0\.0\.1:(\d+)", line):
            break
    port = int(found[1])
    path, kind = "/v1/images/generations", {"content-type": "application/json"}
    body = json.dumps({"prompt": PROMPTS[0], "n": 16, "stream": True})
    with contextlib.ExitStack() as stack:
        client, slow = (
            stack.enter_context(
                contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300))
            )
            for _ in range(2)
        )
        # A request that has not come whole keeps the server from ending.
        slow.putrequest("POST", path)
        slow.putheader("content-type", "application/json")
        slow.putheader("content-length", str(len(body)))
        slow.endheaders(body[:5].encode())
        client.request("POST", path, body, kind)
        response = client.getresponse()
        first = response.readline()
        process.send_signal(signal.SIGTERM)
        # It still answers, that others may take over, but takes nothing new.
        status, headers, health = asked(port, "GET", "/health")
        while status == 200:
            status, headers, health = asked(port, "GET", "/health")
        assert (status, health) == (503, {"status": "draining"})
        for refused in (asked(port, "POST", path, body, kind), finished(slow, body[5:])):
            status, headers, answer = refused
            assert (status, answer["error"]["code"]) == (503, "shutting_down")
            assert headers["x-should-retry"] == "false"
            assert int(headers["retry-after"]) > 0
        text = first + response.read()
    assert text.count(b"event: image_generation.completed") == 16
    assert process.wait(300) == 0
    refused = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    with pytest.raises(OSError):
        refused.connect()


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--port", str(taken.getsockname()[1]))
        error = process.stderr.read()
    assert process.wait(300) == 2
    assert "Address already in use; choose another" in error
