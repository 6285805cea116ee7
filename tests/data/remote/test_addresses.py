"""Addresses: which ones are taken, that none holds a secret, and that names lead nowhere else."""

import pytest

from cogview_jax.data.remote.addresses import (
    common_folder,
    folder_of,
    is_address,
    joined,
    requested,
    without_query,
)
from cogview_jax.data.remote.files import file_status
from cogview_jax.data.sources.source import SourceConfig
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError


def settings(path, kind="webdataset"):
    return build(SourceConfig, {"kind": kind, "path": path})


@pytest.mark.parametrize(
    "path",
    [
        "https://h.example/a/{00000..00041}.tar",
        "http://[::1]:8000/a.tar,http://[::1]:8000/b.tar",
        "gs://b/set/*.tar",
        "s3://b/set",
        "https://h.example/a.tar?$TOKEN",
    ],
)
def test_addresses_that_are_taken(path):
    assert settings(path).path == path


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("ftp://h/a.tar", "begins with https://, http://, gs://, s3://"),
        ("gs:/b/a.tar", "expected the path of a mounted file system"),
        ("https:///a.tar", "without the name of a server"),
        ("https://[::1/a.tar", "no address"),
        ("https://me:secret@h/a.tar", "password"),
        ("https://h/a.tar?sig=secret", "a query may hold a secret"),
        ("https://h/a.tar#1", "write %23"),
        ("https://h/*.tar", "lists no files"),
        ("0.tar,s3://b/x.tar", "these are both"),
    ],
)
def test_addresses_that_are_refused(path, said):
    with pytest.raises(InputError, match=r"^config.path = ") as caught:
        settings(path)
    assert said in str(caught.value)
    assert "secret@" not in str(caught.value)
    assert "sig=" not in str(caught.value)


@pytest.mark.parametrize("kind", ["arrow", "shapes", "tfds"])
def test_other_kinds_name_those_that_read_addresses(kind):
    with pytest.raises(InputError, match=r"^config.path = 'gs://b/set': ") as caught:
        settings("gs://b/set", kind)
    assert str(caught.value).endswith("kinds that do are coco, folder, parquet, webdataset")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "s3fs" else 1)
    with pytest.raises(InputError, match=r"^s3:// needs the package s3fs: .*cogview-jax\[remote\]"):
        file_status("s3://b/a.tar")


def test_a_query_comes_from_the_environment(monkeypatch):
    address = "https://h/a.tar?$TOKEN"
    with pytest.raises(InputError, match="variable TOKEN of the environment is not set"):
        requested(address)
    monkeypatch.setenv("TOKEN", "?sig=x&y=1")
    assert requested(address) == "https://h/a.tar?sig=x&y=1"
    assert without_query(address) == requested("https://h/a.tar") == "https://h/a.tar"
    assert without_query("s3://b/a?$TOKEN") == "s3://b/a?$TOKEN"


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("https://h/a/b.tar?$T", "https://h/a"),
        ("https://h/b.tar", "https://h"),
        ("gs://b/set/*/x-[0-9].tar", "gs://b/set"),
        ("gs://b/set/tr*/x.tar", "gs://b/set"),
        ("s3://b/x.tar", "s3://b"),
    ],
)
def test_folders_of_addresses(address, folder):
    assert is_address(address)
    assert folder_of(address) == folder


def test_common_folders():
    assert common_folder(["s3://b/set/a", "s3://b/set/ab"]) == "s3://b/set"
    assert common_folder(["https://h/a"]) == "https://h/a"
    with pytest.raises(InputError, match=r"one server or bucket.* s3://b and s3://c"):
        common_folder(["s3://b/x", "s3://c/x"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b#1?.png", "https://h/set/a%20b%231%3F.png"),
        ("%2e%2e/x.png", "https://h/set/%252e%252e/x.png"),
        ("https://evil/x.png", "https://h/set/https%3A//evil/x.png"),
        ("//evil/x.png", "https://h/set///evil/x.png"),
    ],
)
def test_names_in_files_of_others_stay_in_the_folder(name, expected):
    assert joined("https://h/set", name, of_listing=True) == expected
    assert joined("https://h/set/", "0.tar?$T") == "https://h/set/0.tar?$T"
    assert joined("https://h/set?$T", "0.png") == "https://h/set/0.png?$T"
