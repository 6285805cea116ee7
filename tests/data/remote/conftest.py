"""A server of a folder, a cache of its own, and pauses that cost no time."""

import pytest

from cogview_jax.data.remote import failures
from file_server import FileServer


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(failures, "PAUSES", (0.001,) * len(failures.PAUSES))


@pytest.fixture
def server(tmp_path):
    with FileServer(tmp_path) as server:
        yield server
