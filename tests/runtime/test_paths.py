"""Names out of files stay in the folder that was named; the cache lies in no working folder."""

import os
from pathlib import Path

import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import check_tree, inside, named_by, user_cache


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "file").write_text("x")
    (tmp_path / "outside").write_text("x")
    return folder


def test_names_within_stay(root):
    (root / "link").symlink_to(root / "a")
    (root / "a" / "near").symlink_to("file")
    for name in ("a/file", "link/file", "a/near", "not there", "a/./file", "...", "a/..b"):
        assert inside(root, name) == root / name
    (root.parent / "other").symlink_to(root)  # the folder itself may be a link
    assert inside(root.parent / "other", "a/file").read_text() == "x"


OUTSIDE = ["../outside", "a/../../outside", "a/..", "..", "out", "up/outside", "/etc/hosts"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_leads_out_is_refused(root, name):
    (root / "out").symlink_to("../outside")
    (root / "up").symlink_to("..")
    with pytest.raises(InputError, match="leads out of this folder, and nothing outside it"):
        inside(root, name)


@pytest.mark.parametrize(
    "name", ["", "a\0b", "\ud800", None, 3, ["a"], "x" * 256, "a/" + "x" * 256]
)
def test_what_is_no_name_is_refused(root, name):
    with pytest.raises(InputError, match=r"is no name of a file|longer than names"):
        inside(root, name)


def test_a_tree_with_something_else_than_files_is_refused(root):
    check_tree(root)
    os.mkfifo(root / "a" / "pipe")
    with pytest.raises(InputError, match="a/pipe: expected a file or a folder"):
        check_tree(root)
    (root / "a" / "pipe").unlink()
    (root / "a" / "out").symlink_to(root.parent)
    with pytest.raises(InputError, match="leads out of this folder"):
        check_tree(root)


def test_an_error_names_the_setting_of_its_path_and_where_a_relative_one_was_looked_for(
    root, monkeypatch
):
    def said(name, path, error="there is none"):
        with pytest.raises(InputError) as raised, named_by(name, path):
            raise InputError(error)
        return str(raised.value)

    monkeypatch.chdir(root)
    assert said("data.store", "a") == "data.store = 'a': there is none"
    assert said("data.store", "b") == f"data.store = 'b' (looked for in {root}): there is none"
    assert said("data.store", f"{root}/b") == f"data.store = '{root}/b': there is none"
    assert said("--adapter", "a") == "--adapter a: there is none"
    assert said("data.store", "a", "data.store a: gone") == "data.store a: gone"
    assert said("data.store", "") == "there is none"


def test_a_relative_cache_counts_for_nothing(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/ann")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/else")
    assert user_cache() == Path("/somewhere/else")
    for given in ("", "cache", "./cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert user_cache() == Path("/home/of/ann/.cache")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path("/home/of/ann/.cache")
