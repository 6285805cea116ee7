"""A bucket with nothing in it, machines with empty disks, and pauses that cost no time."""

import pytest

from cogview_jax.data.remote import bucket_lock, failures, files
from cogview_jax.tasks import workdir_upload
from writable_bucket import WritableBucket

ADDRESS = "s3://bucket/runs/demo"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets up a new machine, whose disk is empty, or goes back to the one with that name."""

    def change(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    monkeypatch.delenv("COGVIEW_WORKDIRS", raising=False)
    change("first")
    return change


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(failures, "PAUSES", (0.001,) * len(failures.PAUSES))
    monkeypatch.setattr(bucket_lock, "RENEWAL", 0.05)
    monkeypatch.setattr(bucket_lock, "PATIENCE", 0.2)
    monkeypatch.setattr(workdir_upload, "PAUSE", 0.05)


@pytest.fixture
def bucket(tmp_path, machine, quick, monkeypatch):
    bucket = WritableBucket(tmp_path / "nothing", ADDRESS)
    monkeypatch.setattr(files, "file_system", lambda name: bucket)
    return bucket
