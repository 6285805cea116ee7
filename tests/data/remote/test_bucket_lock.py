"""Locks in a bucket: the second is refused, the dead keep nobody out, and a loser notices."""

import time

import pytest

from cogview_jax.data.remote import bucket_lock, files
from cogview_jax.data.remote.bucket_lock import BucketLock
from cogview_jax.runtime.errors import InputError, SystemFault
from writable_bucket import WritableBucket

ADDRESS = "gs://bucket/run"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(bucket_lock, "RENEWAL", 0.02)
    monkeypatch.setattr(bucket_lock, "PATIENCE", 0.5)
    bucket = WritableBucket(tmp_path / "nothing", ADDRESS)
    monkeypatch.setattr(files, "file_system", lambda name: bucket)
    return bucket


def test_the_second_is_refused_and_told_who_is_there(bucket, monkeypatch):
    monkeypatch.setattr(bucket_lock, "PATIENCE", 300)
    with BucketLock(ADDRESS, "one").held():
        with (
            pytest.raises(InputError, match=r"workdir gs://bucket/run is in use by process \d+ on"),
            BucketLock(ADDRESS, "two").held(),
        ):
            pass
        assert bucket.names() == [".locks/one"]
    assert bucket.names() == []
    with BucketLock(ADDRESS, "two").held():
        assert bucket.names() == [".locks/two"]


def test_a_dead_one_is_waited_for_once(bucket, capsys):
    bucket.put(".locks/dead", b"{}")
    with BucketLock(ADDRESS, "one").held():
        assert bucket.names() == [".locks/one"]
    assert "is locked by another process: waiting 0 s for a sign of life" in capsys.readouterr().err


def test_one_that_is_released_as_it_is_looked_at_keeps_nobody_out(bucket, monkeypatch, capsys):
    bucket.put(".locks/ending", b"{}")
    read = bucket_lock.read_whole

    def released(address, limit):
        bucket.rm_file(f"{ADDRESS}/.locks/ending")
        return read(address, limit)

    monkeypatch.setattr(bucket_lock, "read_whole", released)
    with BucketLock(ADDRESS, "one").held():
        assert bucket.names() == [".locks/one"]
    assert capsys.readouterr().err == ""


def test_who_has_the_same_name_need_not_wait(bucket, capsys):
    bucket.put(".locks/one", b"{}")
    with BucketLock(ADDRESS, "one").held():
        pass
    assert capsys.readouterr().err == ""


def test_who_comes_at_the_same_moment_is_refused(bucket, monkeypatch):
    put = bucket.pipe_file

    def both(address, data):
        put(address, data)
        bucket.put(".locks/two", b"{}")

    monkeypatch.setattr(bucket, "pipe_file", both)
    with pytest.raises(InputError, match="in use"), BucketLock(ADDRESS, "one").held():
        pass
    assert bucket.names() == [".locks/two"]


def test_who_was_taken_over_notices(bucket):
    lock = BucketLock(ADDRESS, "one")
    with lock.held():
        lock.check()
        bucket.put(".locks/two", b"{}")
        with pytest.raises(InputError, match="was taken over by another process: nothing more"):
            lock.check()
        bucket.rm_file(f"{ADDRESS}/.locks/two")
        with pytest.raises(InputError, match="was taken over"):
            lock.check()
    lock = BucketLock(ADDRESS, "one")
    with lock.held():
        bucket.rm_file(f"{ADDRESS}/.locks/one")
        with pytest.raises(InputError, match="was taken over"):
            lock.check()


def test_it_is_renewed_though_the_bucket_fails_for_a_while(bucket, monkeypatch):
    monkeypatch.setattr("cogview_jax.data.remote.failures.PAUSES", ())
    lock = BucketLock(ADDRESS, "one")

    def renewed():
        before, deadline = bucket.read(".locks/one"), time.monotonic() + 300
        while bucket.read(".locks/one") == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with lock.held():
        renewed()
        bucket.always = 503
        with pytest.raises(SystemFault):
            lock.check()
        time.sleep(0.1)
        bucket.always = None
        renewed()


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "/.locks/: 403 Forbidden: log in"), (404, ": there is no such bucket: make it first")],
)
def test_a_bucket_that_may_not_be_written(bucket, status, said):
    bucket.always = status
    with (
        pytest.raises(InputError, match=f"^gs://bucket/run{said}") as caught,
        BucketLock(ADDRESS, "one").held(),
    ):
        pass
    assert "\n" not in str(caught.value)
