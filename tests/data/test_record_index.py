"""Indexes: made once, made anew when files changed, shared by processes, and never half there."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cogview_jax.data import record_index_writer
from cogview_jax.data.record_index import DESCRIPTION, RECORDS, TEXTS, WATCHED
from cogview_jax.data.record_index_writer import BESIDE, IndexPart, open_index
from cogview_jax.data.records import BadRecord
from cogview_jax.runtime.errors import InputError, SystemFault

#: The lines of a file are records; a line "!WHY" is a bad one, and "?" is ignored.
LINES = {"a": "one\ntwo|a caption|another\n", "b": "!broken\nthree\n?\n", "c": "four|图\n"}


@dataclass(frozen=True)
class LineScan:
    """Every line of a file is a record; its place is where the line begins."""

    def __call__(self, path: str, part: IndexPart) -> None:
        if Path(path).name == "killed":
            os._exit(9)
        offset = 0
        with open(f"{path}.scanned", "a") as log:
            log.write(f"{os.getpid()}\n")
        for line in Path(path).read_bytes().splitlines(keepends=True):
            key, *captions = line.decode().strip().split("|")
            if key == "?":
                part.findings.ignored.add("unknown", path.rpartition("/")[2])
            elif key[0] == "!":
                part.add_bad("bad", key[1:])
            else:
                part.add(key, captions, offset, len(line))
            offset += len(line)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for name, text in LINES.items():
        (tmp_path / "data" / name).write_text(text)
    return tmp_path / "data"


def opened(root, names="abc", **settings):
    defaults = {"depends_on": {"kind": "lines"}, "beside": root}
    return open_index(root, list(names), LineScan(), **defaults | settings)


def scans(root):
    """The processes that read each file, from the first time on."""
    return {path.stem: path.read_text().split() for path in sorted(root.glob("*.scanned"))}


def test_records_are_where_the_files_have_them(root):
    index = opened(root)
    assert len(index) == 5
    assert [index.key(i) for i in range(5)] == ["a/one", "a/two", "b/bad", "b/three", "c/four"]
    assert [index[i].captions for i in (0, 1, 4)] == [(), ("a caption", "another"), ("图",)]
    whole = "".join(LINES.values()).encode().splitlines(keepends=True)
    good = [line for line in whole if line[:1] not in b"!?"]
    assert [index.read(index[i]) for i in (0, 1, 3, 4)] == good
    with pytest.raises(BadRecord, match=r"^b/bad: broken$"):
        index[2]
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            index[outside]
    assert str(index.ignored()) == "ignored 1: 1 unknown (b)"
    assert index.counts == {"captioned": 2, "bad": 1}


def test_rows_are_an_array_of_24_bytes_a_record(root):
    rows = np.load(opened(root).folder / RECORDS, mmap_mode="r")
    assert rows.dtype.itemsize == 24
    assert len(rows) == 6
    assert rows["file"].tolist() == [0, 0, 1, 1, 2, 0]
    assert rows["size"][2] == 0
    texts = (opened(root).folder / TEXTS).read_bytes()
    assert texts[rows["text"][1] : rows["text"][2]] == b"two\0a caption\0another"
    assert rows["text"][5] == len(texts)


def test_many_records_in_several_processes_are_those_of_one(root, monkeypatch):
    names = [f"{n:02}" for n in range(12)]
    for n, name in enumerate(names):
        lines = [f"{n}.{i}|caption {i} of {n}" for i in range(50 * n)]
        (root / name).write_text("\n".join(lines))
    one = opened(root, names)
    monkeypatch.setattr(record_index_writer, "_SMALL", 0)
    monkeypatch.setattr(record_index_writer, "cores", lambda: 2)
    monkeypatch.setattr(record_index_writer, "_ROWS", 64)
    two = opened(root, names, depends_on={"kind": "the same"})
    for name in (RECORDS, TEXTS, DESCRIPTION):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    readers = [pids[1] for pids in scans(root).values()]
    assert len({*readers}) == 2
    assert str(os.getpid()) not in readers
    assert one[3299].captions == ("caption 549 of 11",)


def test_an_index_is_made_once(root, capsys):
    folder = opened(root).folder
    assert folder.parent == root / BESIDE
    assert "index: 100% 3/3" in capsys.readouterr().err
    opened(root)
    assert [len(each) for each in scans(root).values()] == [1, 1, 1]
    assert capsys.readouterr().err == ""
    assert sorted(os.listdir(folder)) == sorted([DESCRIPTION, RECORDS, TEXTS, WATCHED])
    assert os.listdir(folder.parent) == [folder.name]


def test_it_depends_on_what_it_depends_on(root):
    folders = {opened(root, depends_on={"keys": keys}).folder for keys in ("a", "b", "a")}
    assert len(folders) == 2


def test_data_that_moved_keep_their_index(root, tmp_path):
    opened(root)
    os.rename(root, tmp_path / "moved")
    assert opened(tmp_path / "moved").key(4) == "c/four"
    assert [len(each) for each in scans(tmp_path / "moved").values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "names", "why"),
    [
        (lambda root: (root / "b").write_text("new|of another size"), "abc", "b was changed"),
        (lambda root: os.utime(root / "c", ns=(5, 5)), "abc", "c was changed"),
        (lambda root: shutil.copy(root / "a", root / "d"), "abcd", "1 of its files is new"),
        (lambda root: os.unlink(root / "a"), "bc", "1 of its files is gone"),
        (lambda root: None, "acb", "the order of its files is another"),
    ],
)
def test_it_is_made_anew_when_files_changed(root, capsys, change, names, why):
    folder = opened(root).folder
    change(root)
    capsys.readouterr()
    index = opened(root, names)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"index {folder}: {why}: it is made anew"
    (root.parent / "fresh").mkdir()
    for name in names:
        shutil.copy(root / name, root.parent / "fresh" / name)
    fresh = opened(root.parent / "fresh", names)
    assert [index.key(i) for i in range(len(index))] == [fresh.key(i) for i in range(len(fresh))]
    opened(root, names)
    assert capsys.readouterr().err.count("made anew") == 0


def damage(path, how):
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[:-9])
    elif how == "flipped":
        path.write_bytes(data.replace(b'"records": 5', b'"records": 4'))
    elif how == "version":
        path.write_text(json.dumps({"version": 99}))


@pytest.mark.parametrize(
    ("file", "how", "why"),
    [
        (RECORDS, "cut", "damaged: its files do not have the sizes they had"),
        (TEXTS, "cut", "damaged: its files do not have the sizes they had"),
        (DESCRIPTION, "cut", "damaged"),
        (DESCRIPTION, "flipped", "damaged: it was changed after it was written"),
        (DESCRIPTION, "version", "of another version of this program"),
    ],
)
def test_a_damaged_index_is_made_anew(root, capsys, file, how, why):
    folder = opened(root).folder
    damage(folder / file, how)
    capsys.readouterr()
    assert opened(root).key(4) == "c/four"
    assert why in capsys.readouterr().err
    assert [len(each) for each in scans(root).values()] == [2, 2, 2]


@pytest.mark.parametrize(("field", "bit"), [("file", 9), ("offset", 40), ("text", 33)])
def test_a_row_that_leads_outside_is_refused(root, field, bit):
    index = opened(root)
    rows = np.load(index.folder / RECORDS)
    rows[field][1] ^= np.array(1 << bit, rows.dtype[field])
    np.save(index.folder / RECORDS, rows)
    with pytest.raises(InputError, match="damaged: delete it, and it is made anew"):
        opened(root)[1]
    assert opened(root)[4].captions == ("图",)


def test_texts_that_are_cut_off_while_they_are_read_are_refused(root):
    index = opened(root)
    with open(index.folder / TEXTS, "r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    with pytest.raises(InputError, match="damaged: delete it, and it is made anew"):
        index[4]
    assert index.key(0) == "a/one"


def test_a_file_that_changes_while_it_is_read_is_said(root):
    index = opened(root)
    (root / "a").write_text("another\n")
    with pytest.raises(InputError, match="data/a: changed while it was read: start again"):
        index.read(index[0])
    os.unlink(root / "a")
    with pytest.raises(InputError, match="data/a: No such file or directory"):
        index.read(index[0])
    assert index.read(index[3]) == b"three\n"


def test_the_cache_is_taken_where_the_data_cannot_be_written(root, tmp_path, monkeypatch):
    mkdir = os.mkdir

    def refuse(path, *options, **named):
        if str(path).startswith(str(root)):
            raise OSError(30, "Read-only file system", str(path))
        return mkdir(path, *options, **named)

    monkeypatch.setattr(os, "mkdir", refuse)
    index = opened(root)
    assert index.folder.is_relative_to(tmp_path / "cache" / "cogview_jax")
    assert not (root / BESIDE).exists()
    assert opened(root).folder == index.folder
    assert opened(root).key(4) == "c/four"
    with pytest.raises(InputError, match="Read-only file system: name a folder that may be wr"):
        opened(root, place=str(root / "no"))


def test_a_folder_for_it_may_be_named(root, tmp_path):
    index = opened(root, place=str(tmp_path / "mine"))
    assert index.folder.parent == tmp_path / "mine"
    assert not (root / BESIDE).exists()


def test_a_scan_that_fails_leaves_nothing(root, monkeypatch):
    (root / "killed").write_text("x")
    monkeypatch.setattr(record_index_writer, "_SMALL", 0)
    monkeypatch.setattr(record_index_writer, "cores", lambda: 2)
    with pytest.raises(SystemFault, match=r"a worker process ended \(status 9\)"):
        opened(root, ["a", "killed", "b", "c"])
    assert not (root / BESIDE).exists()
    assert len(opened(root)) == 5


def test_two_processes_that_start_at_once_make_it_once(root):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cogview_jax.data.record_index_writer import open_index\n"
        "root = Path(sys.argv[1])\n"
        "def scan(path, part):\n"
        "    with open(path + '.scanned', 'a') as log: log.write('x\\n')\n"
        "    time.sleep(0.3)\n"
        "    part.add('key', ['text'], 0, 1)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "index = open_index(root, ['a', 'b'], scan, depends_on={}, beside=root)\n"
        "print(index.key(1))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=300)[0] for process in processes] == ["b/key\n"] * 3
    assert [len(each) for each in scans(root).values()] == [1, 1]


def test_one_that_is_killed_leaves_no_index_and_its_rest_is_removed(root):
    code = (
        "import sys, os\n"
        "from cogview_jax.data.record_index_writer import open_index\n"
        "def scan(path, part):\n"
        "    if path.endswith('b'): os.kill(os.getpid(), 9)\n"
        "    part.add('key', [], 0, 1)\n"
        "open_index(sys.argv[1], ['a', 'b'], scan, depends_on={'kind': 'lines'},"
        " beside=sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], stderr=subprocess.DEVNULL)
    left = os.listdir(root / BESIDE)
    assert any(name.startswith(".cogview-tmp-") for name in left)
    assert len(opened(root)) == 5
    assert os.listdir(root / BESIDE) == [opened(root).folder.name]
