"""Outputs are whole or absent; hashes follow contents and names."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from cogview_jax.runtime import faults, files
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.files import (
    atomic_path,
    check_file_output,
    check_folder_output,
    open_regular,
    read_at,
    read_json,
    read_regular,
    sha256_file,
    sha256_tree,
    sync,
    text_lines,
    write_file,
    write_json,
)
from cogview_jax.runtime.leftovers import remove_leftovers


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


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_while_a_folder_is_replaced_loses_neither(tmp_path, root, exchanges):
    """Before every rename in turn: the old folder or the new one is there, or comes back."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from cogview_jax.runtime import files\n"
        "left = int(sys.argv[2])\n"
        "def kill(event, arguments):\n"
        "    global left\n"
        "    if event in ('os.rename', 'shutil.rmtree'):\n"
        "        left -= 1\n"
        "        if left < 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv[3] == 'False':\n"
        "    files._exchange = lambda one, other: False\n"
        "with files.atomic_path(sys.argv[1]) as path:\n"
        "    path.mkdir()\n"
        "    Path(path, 'new').write_text('new')\n"
        "    sys.addaudithook(kill)\n"
    )
    found = []
    for moment in range(4):
        target = tmp_path / str(moment) / "bundle"
        target.mkdir(parents=True)
        (target / "old").write_text("old")
        command = [sys.executable, "-c", program, target, str(moment), str(exchanges)]
        result = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": str(root)})
        remove_leftovers(target.parent)
        assert names(target.parent) == ["bundle"]
        found += [(result.returncode, *names(target))]
    killed, done = -signal.SIGKILL, 0
    if exchanges:  # one system call, which no rename of Python's precedes
        assert found == [(killed, "new"), *[(done, "new")] * 3]
    else:
        assert found == [(killed, "old"), (killed, "old"), (killed, "new"), (done, "new")]


def test_files_and_folders_do_not_replace_each_other(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "report.json"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "weights").write_text("weeks")
    file.write_text("{}")
    with pytest.raises(InputError, match=r"run is a folder: expected the name of a file"):
        write_json(folder, {})
    no_folder = r"report.json is a file: expected the name of a folder"
    with pytest.raises(InputError, match=no_folder), atomic_path(file) as temporary:
        temporary.mkdir()
    assert (folder / "checkpoints" / "weights").read_text() == "weeks"
    assert file.read_text() == "{}"
    assert names(tmp_path) == ["report.json", "run"]


def test_outputs_are_checked_before_work(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    check_file_output(tmp_path / "file")
    check_file_output(tmp_path / "new" / "deep" / "file")
    check_folder_output(tmp_path / "folder")
    check_folder_output(tmp_path / "new" / "deep")
    with pytest.raises(InputError, match=r"^--out .*/new/ names a folder"):
        check_file_output(f"{tmp_path}/new/", "--out")
    with pytest.raises(InputError, match=r"^--out .*folder is a folder"):
        check_file_output(tmp_path / "folder", "--out")
    with pytest.raises(InputError, match=r"^--out .*file is a file"):
        check_folder_output(tmp_path / "file", "--out")
    with pytest.raises(InputError, match=r"^.*link is a file"):
        check_folder_output(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"^--out .*pipe is a pipe"):
        check_file_output(tmp_path / "pipe", "--out")
    with pytest.raises(InputError, match=r"^/dev/null is a device"):
        check_file_output("/dev/null")
    for check in (check_file_output, check_folder_output):
        with pytest.raises(InputError, match=r"file is a file, expected a folder"):
            check(tmp_path / "file" / "a" / "b")


def test_outputs_in_a_folder_that_may_not_be_written_to_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    line = f"^--out {tmp_path}/new: {tmp_path} may not be written to$"
    with pytest.raises(InputError, match=line):
        check_file_output(f"{tmp_path}/new", "--out")
    with pytest.raises(InputError, match=line):
        check_folder_output(f"{tmp_path}/new", "--out", replaced=True)
    check_folder_output(f"{tmp_path}/new", "--out")  # its own folder may be a mounted one


def test_what_takes_its_name_is_on_disk_before(tmp_path, monkeypatch):
    order = []
    kept = {name: getattr(os, name) for name in ("fsync", "replace")}

    def fsync(descriptor):
        order.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        kept["fsync"](descriptor)

    def replace(one, other):
        order.append(f"rename to {other}")
        kept["replace"](one, other)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    with atomic_path(tmp_path / "bundle") as temporary:
        (temporary / "codec").mkdir(parents=True)
        (temporary / "codec" / "weights").write_text("w")
        (temporary / "bundle.json").write_text("{}")
    inside = {str(temporary / name) for name in ("codec", "codec/weights", "bundle.json")}
    assert set(order[:4]) == {*inside, str(temporary)}
    assert order[4:] == [f"rename to {tmp_path}/bundle", str(tmp_path)]


def test_read_regular_takes_files_of_a_size(tmp_path):
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_bytes(b"12345")
    os.mkfifo(pipe)
    assert read_regular(file, 5) == b"12345"
    with pytest.raises(InputError, match="5 bytes, expected at most 4"):
        read_regular(file, 4)
    for path, kind in ((pipe, "pipe"), ("/dev/zero", "device"), (tmp_path, "folder")):
        with pytest.raises(InputError, match=f"expected a file, but this is a {kind}"):
            read_regular(path, 5)


@pytest.mark.parametrize(
    "data", [b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000 + b"]" * 100_000], ids=range(4)
)
def test_damaged_json_is_one_line_with_its_name(tmp_path, data):
    (tmp_path / "plan.json").write_bytes(data)
    with pytest.raises(InputError, match=r"^.*plan.json: damaged: n.*$"):
        read_json(tmp_path / "plan.json")


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


def test_a_disk_that_stutters_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(faults.time, "sleep", lambda seconds: None)
    fails = [OSError(errno.EIO, "Input/output error")] * 2

    def write(path):
        path.write_text("half" if fails else "whole")
        if fails:
            raise fails.pop()

    write_file(tmp_path / "x", write)
    assert (tmp_path / "x").read_text() == "whole"
    fails += [OSError(errno.EIO, "Input/output error")] * 99
    with pytest.raises(SystemFault, match=r"x: Input/output error \(6 tries\)"):
        write_file(tmp_path / "x", write)
    assert (tmp_path / "x").read_text() == "whole"
    assert names(tmp_path) == ["x"]


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


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbfa\r\nb\rc\n\nd", ["a", "b", "c", "", "d"]),
        (b"a\n", ["a"]),
        (
            "a\u2028b\u0085c\x0cd\x0be\u2029f\x1cg\n星".encode(),
            ["a\u2028b\u0085c\x0cd\x0be\u2029f\x1cg", "星"],
        ),
        ("a\ufeffb".encode(), ["a\ufeffb"]),
    ],
)
def test_a_line_ends_with_a_line_feed_a_carriage_return_or_both(tmp_path, data, lines):
    assert text_lines(data) == lines
    (tmp_path / "lines").write_bytes(data)
    with open(tmp_path / "lines", encoding="utf-8-sig") as file:  # what Python itself makes of it
        assert [line.removesuffix("\n") for line in file] == lines


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"one\r\ntwo\rcaf\xe9 three", r"line 3 is no UTF-8 \(byte 0xe9\)"),
        ("a red".encode("utf-16"), r"line 1 is no UTF-8 \(byte 0xff\)"),
        (b"a\n\xed\xb3\xbf", r"line 2 is no UTF-8 \(byte 0xed\)"),
    ],
)
def test_what_is_no_utf8_is_told_by_line(data, message):
    with pytest.raises(ValueError, match=message):
        text_lines(data)


def test_reading_at_a_place_gives_all_that_is_there(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    pread = os.pread  # network disks may give less than is asked for
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 7), at))
    with open_regular(tmp_path / "a") as file:
        for size, at in ((40, 3), (7, 0), (50, 80), (5, 100), (0, 9)):
            assert read_at(file.fileno(), size, at) == bytes(range(100))[at : at + size]
