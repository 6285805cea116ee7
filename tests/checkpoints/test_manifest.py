"""Whatever happens to a file of a folder is found by the manifest, and named."""

import hashlib
import json
import os
import resource

import pytest

from cogview_jax.checkpoints.manifest import NAME, find_damage, has_manifest, write_manifest
from cogview_jax.checkpoints.manifest import _text as manifest_text
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import SystemFault

FILES = {"a": b"1", "b/c": b"22" * 1000, "b/d/e": b"", "f": b"4444"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert not has_manifest(tmp_path)
    write_manifest(tmp_path)
    assert has_manifest(tmp_path)
    return tmp_path


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_it_lists_size_and_hash_of_every_file(folder):
    listed = json.loads((folder / NAME).read_text())
    assert listed["format"] == 1
    assert listed["files"] == {
        name: [len(content), hashlib.sha256(content).hexdigest()] for name, content in FILES.items()
    }
    assert find_damage(folder) == []


@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_a_flipped_bit_is_found_and_named(folder, name):
    for bit in (0, 8 * len(FILES[name]) - 1):
        flip(folder / name, bit)
        (line,) = find_damage(folder)
        assert line.startswith(f"{name}: has sha256 ")
        flip(folder / name, bit)


def test_bits_of_the_manifest_itself_count(folder):
    for bit in range(0, 8 * (folder / NAME).stat().st_size, 13):
        flip(folder / NAME, bit)
        lines = find_damage(folder)
        assert len(lines) == 1, bit
        assert lines[0].startswith(f"{NAME}: "), bit
        flip(folder / NAME, bit)
    (folder / NAME).write_bytes(b"")
    assert find_damage(folder) == [f"{NAME}: was changed"]
    (folder / NAME).unlink()
    assert find_damage(folder) == [f"{NAME}: is missing"]


def test_a_newer_format_is_not_damage_of_an_unknown_kind(folder):
    listed = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps(listed | {"format": 2}))
    assert find_damage(folder) == [f"{NAME}: has format 2; this program reads 1"]


def test_other_sizes_missing_and_foreign_files_are_named(folder):
    (folder / "a").write_bytes(b"")
    (folder / "b" / "c").unlink()
    (folder / "b" / "d" / "e").write_bytes(b"0")
    (folder / "b" / "new").write_bytes(b"")
    assert sorted(find_damage(folder)) == [
        "a: has 0 bytes, expected 1",
        "b/c: is missing",
        "b/d/e: has 1 bytes, expected 0",
        f"b/new: is not in {NAME}",
    ]


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_processes_share_the_work_and_leave_nothing_out(folder, parts):
    for name in FILES:
        (folder / name).unlink()
    (folder / "new").touch()
    found = [find_damage(folder, part, parts) for part in range(parts)]
    whole = find_damage(folder)
    assert len(whole) == len(FILES) + 1
    assert sorted(line for lines in found for line in lines) == sorted(whole)
    assert max(map(len, found)) <= 1 + -(-len(FILES) // parts)


def rewrite(folder, files):
    """A manifest that fits itself, as an attacker writes one."""
    (folder / NAME).write_text(manifest_text(files))


@pytest.mark.parametrize("name", ["../outside", "/dev/zero", "link", "up/outside"])
def test_a_manifest_opens_nothing_outside_its_folder(folder, name):
    (folder.parent / "outside").write_bytes(b"1")
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "up").symlink_to(folder.parent)
    rewrite(folder, {name: [1, hashlib.sha256(b"1").hexdigest()]})
    assert f"{name}: leads out of the folder" in find_damage(folder)


def test_a_pipe_is_not_waited_for(folder):
    (folder / "a").unlink()
    os.mkfifo(folder / "a")
    assert find_damage(folder) == ["a: is no file"]


@pytest.mark.parametrize(
    "files", [{"a": 3}, {"a": ["1", "x"]}, {"a": [1]}, {"a": [1, 2]}, {"a": None}, ["a"], "a"]
)
def test_types_of_a_manifest_are_checked(folder, files):
    rewrite(folder, files)
    assert find_damage(folder) == [f"{NAME}: was changed"]


def test_a_deep_manifest_is_damage(folder):
    (folder / NAME).write_text('{"files": ' + "[" * 100_000)
    assert find_damage(folder) == [f"{NAME}: was changed"]


def test_what_file_managers_leave_is_no_damage(folder):
    for name in (".DS_Store", "b/._c", "b/d/Thumbs.db", "desktop.ini", ".directory"):
        (folder / name).write_text("left")
    assert find_damage(folder) == []
    (folder / "unknown").write_text("left")
    assert find_damage(folder) == [f"unknown: is not in {NAME}"]


def test_a_machine_that_cannot_read_a_file_says_nothing_of_it(folder, monkeypatch):
    """So the checkpoint is not moved away as damaged."""
    monkeypatch.setattr(faults, "PAUSES", (0.0,))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(SystemFault, match="Too many open files"):
            find_damage(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert find_damage(folder) == []
