"""Outputs are whole or absent; hashes follow contents and names."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from cogview_jax.runtime.files import (
    atomic_path,
    remove_leftovers,
    sha256_file,
    sha256_tree,
    sync,
    write_json,
)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_file_appears_only_when_whole(tmp_path):
    target = tmp_path / "new" / "data.bin"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".bin"
        temporary.write_bytes(b"one")
        assert not target.exists()
    assert target.read_bytes() == b"one"
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"one"
    assert names(target.parent) == ["data.bin"]


def test_folder_replaces_folder(tmp_path):
    target = tmp_path / "bundle"
    for content in ("old", "new"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["bundle"]
    assert names(target) == ["new"]


def test_nothing_written_keeps_the_old(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert names(target) == ["old"]


def test_killed_writer_leaves_the_old_and_can_be_swept(tmp_path):
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})
    program = (
        "import os, signal, sys\n"
        "from cogview_jax.runtime.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, target], check=False)
    assert result.returncode == -signal.SIGKILL
    assert json.loads(target.read_text()) == {"a": 1}
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["x.json"]
    remove_leftovers(tmp_path / "absent")


def test_write_json(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"caption": "红色圆形", "values": [1, 2.5, None]})
    text = path.read_text(encoding="utf-8")
    assert "红色圆形" in text
    assert json.loads(text) == {"caption": "红色圆形", "values": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert path.read_text(encoding="utf-8") == text


def test_sha256_file_is_the_standard_one(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_sha256_tree_sees_names_and_contents_only(tmp_path):
    def tree(name, files):
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(content)
        return sha256_tree(tmp_path / name)

    one = tree("one", {"a": "1", "b/c": "2"})
    assert tree("two", {"b/c": "2", "a": "1"}) == one
    assert tree("renamed", {"a": "1", "b/d": "2"}) != one
    assert tree("changed", {"a": "1", "b/c": "3"}) != one
    assert tree("swapped", {"a": "2", "b/c": "1"}) != one
    (tmp_path / "one" / "empty").mkdir()
    os.utime(tmp_path / "one" / "a", (0, 0))
    assert sha256_tree(tmp_path / "one") == one


def test_sync_takes_files_and_folders_and_says_what_is_not_there(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    sync(tmp_path / "x")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "y")
