"""Objects are written and deleted with the patience of reading."""

import pytest

from cogview_jax.data.remote import files, writing
from cogview_jax.runtime.errors import SystemFault
from writable_bucket import WritableBucket

ADDRESS = "gs://bucket/run"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    bucket = WritableBucket(tmp_path / "nothing", ADDRESS)
    monkeypatch.setattr(files, "file_system", lambda name: bucket)
    return bucket


@pytest.mark.parametrize("at_once", [0, 1 << 20])
def test_a_file_is_copied(bucket, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(writing, "_AT_ONCE", at_once)
    (tmp_path / "a").write_bytes(b"abc")
    bucket.faults.extend([503, 429])
    writing.upload(tmp_path / "a", f"{ADDRESS}/b")
    assert bucket.read("b") == b"abc"
    bucket.always = 500
    with pytest.raises(SystemFault, match=r"gs://bucket/run/b: 500 .* \(7 tries\)"):
        writing.upload(tmp_path / "a", f"{ADDRESS}/b")
    with pytest.raises(FileNotFoundError):
        writing.upload(tmp_path / "c", f"{ADDRESS}/c")


def test_what_is_not_there_is_deleted_already(bucket):
    for name in ("a", "b", "c"):
        bucket.put(name, b"x")
    bucket.faults.append(503)
    writing.delete([f"{ADDRESS}/{name}" for name in ("a", "missing", "c")])
    assert bucket.names() == ["b"]


@pytest.mark.parametrize(
    ("address", "is_one"), [("gs://b/x", True), ("s3://b", True), ("https://h/x", False)]
)
def test_where_files_can_be_written(address, is_one):
    assert writing.is_bucket(address) == is_one
