"""Large folders, whose paths are found through an index: the same records as of small ones."""

import errno
import os
import threading

import pytest

from cogview_jax.data.record_index_writer import BESIDE
from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources import folder_index
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.data.sources.source import captions_of
from cogview_jax.runtime.errors import InputError
from tar_files import png


def write(root, *names):
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
        (root / name).with_suffix(".txt").write_text(f"image {value}")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Names whose order within the paths is not that within their folders, and odd ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root, "b/1.png", "b.png", "b-x/1.png", "b/c/2.png", "b/c.png", "b/c-1.png", "ba.png")
    write(root, "a/\n.png", "图/1.png", ".hidden/3.png", "empty/deep/4.jpg")
    write(outside, "o.png", "deep/p.png")
    (root / "b" / "out").symlink_to(outside)
    (root / "b" / "back").symlink_to(root)
    (root / "b" / "disk").symlink_to(tmp_path / "disk")
    (root / "b-x" / "1.txt").unlink()
    (root / "notes.md").touch()
    os.rename(root / "ba.png", os.fsencode(root) + b"/\xff.png")
    return root


def large(root, monkeypatch):
    monkeypatch.setattr(folder_index, "IN_MEMORY", 0)
    return FolderSource(root)


def outcomes(source):
    def outcome(i):
        try:
            record = source[i]
        except BadRecord as error:
            return source.key(i), error.key, error.reason
        return source.key(i), record.key, captions_of(source, i), record.image.sum()

    return [source.describe(), *map(outcome, range(len(source)))]


def test_large_folders_have_the_records_of_small_ones(root, monkeypatch):
    small = outcomes(FolderSource(root))
    assert not (root / BESIDE).exists()
    assert len(small) == 1 + 13
    assert outcomes(large(root, monkeypatch)) == small
    assert (root / BESIDE).is_dir()
    assert outcomes(large(root, monkeypatch)) == small
    keys = [each[0] for each in small[1:]]
    assert keys == sorted(keys, key=lambda key: key.replace("\\udc", "\udcff"))
    monkeypatch.setattr(folder_index, "IN_MEMORY", 13)
    assert outcomes(FolderSource(root)) == small


def test_without_a_change_no_folder_is_listed(root, monkeypatch, capsys):
    count = len(large(root, monkeypatch))
    capsys.readouterr()

    def refuse(path):
        raise AssertionError(f"{path} is listed")

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(FolderSource(root)) == count
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda root: write(root, "new.png"), "root was changed"),
        (lambda root: write(root, "b/c/new.png"), "b/c was changed"),
        (lambda root: (root / "b" / "c.png").unlink(), "b was changed"),
        (lambda root: (root / "a" / "\n.png").rename(root / "a" / "n.png"), "a was changed"),
        (lambda root: write(root, "empty/new/1.png"), "empty was changed"),
        (lambda root: write(root.parent / "outside", "deep/q.png"), "b/out/deep was changed"),
        (lambda root: (root / "b" / "out").unlink(), "b was changed"),
        (lambda root: (root.parent / "outside").rename(root.parent / "x"), "b/out is gone"),
        (lambda root: (root / "b-x" / "1.txt").touch(), "b-x was changed"),
        (lambda root: write(root.parent / "disk", "q.png"), "b/disk was changed"),
    ],
)
def test_a_changed_folder_is_listed_anew(root, monkeypatch, capsys, change, what):
    before = outcomes(large(root, monkeypatch))
    # A file system's clock may tick slower than this test.
    for folder, _, _ in [*os.walk(root, followlinks=False), *os.walk(root.parent / "outside")]:
        os.utime(folder, (1, 1))
    large(root, monkeypatch)
    change(root)
    capsys.readouterr()
    now = outcomes(FolderSource(root))
    assert f"{what}: it is made anew" in capsys.readouterr().err
    monkeypatch.setattr(folder_index, "IN_MEMORY", 100)
    os.rename(root / BESIDE, root.parent / BESIDE)
    assert now == outcomes(FolderSource(root)) != before


def test_a_folder_that_could_not_be_listed_is_not_forgotten(root, monkeypatch, capsys):
    """Only its rights change, which no time of a folder tells. The tests may run as root."""
    closed, scandir, stat = str(root / "b-x"), os.scandir, os.stat

    def refusing(real, place):
        def called(path, *options, **named):
            if path == place:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return real(path, *options, **named)

        return called

    whole = outcomes(FolderSource(root))
    monkeypatch.setattr(os, "scandir", refusing(scandir, closed))
    monkeypatch.setattr(os, "stat", refusing(stat, f"{closed}/."))
    source = large(root, monkeypatch)
    assert len(source) == 12
    assert "1 not to be listed: Permission denied (b-x)" in source.describe()
    # As long as it is closed, the index holds.
    capsys.readouterr()
    assert outcomes(FolderSource(root)) == outcomes(source)
    assert "made anew" not in capsys.readouterr().err
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "stat", stat)
    assert outcomes(FolderSource(root)) == whole
    assert "b-x was changed: it is made anew" in capsys.readouterr().err


def test_one_of_several_that_start_at_once_makes_the_index(root, monkeypatch):
    made = []
    real = folder_index.walk

    def counted(*arguments):
        made.append(threading.get_ident())
        return real(*arguments)

    monkeypatch.setattr(folder_index, "walk", counted)
    monkeypatch.setattr(folder_index, "IN_MEMORY", 0)
    found = []
    barrier = threading.Barrier(3)

    def start():
        barrier.wait()
        found.append(len(FolderSource(root)))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [13, 13, 13]
    assert len(made) == 1


def test_a_folder_that_became_small_is_kept_in_memory(root, monkeypatch):
    index = large(root, monkeypatch)._scan.images
    assert isinstance(index, folder_index.IndexedPaths)
    write(root, "new.png")
    monkeypatch.setattr(folder_index, "IN_MEMORY", 100)
    source = FolderSource(root)
    assert isinstance(source._scan.images, list)
    assert len(source) == 14


def test_where_the_index_can_be_written_nowhere(root, monkeypatch):
    mkdir = os.mkdir

    def refuse(path, *options, **named):
        if BESIDE in str(path) or "cache" in str(path):
            raise OSError(30, "Read-only file system", str(path))
        return mkdir(path, *options, **named)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(InputError, match=r"Read-only .* may be written to as XDG_CACHE_HOME"):
        large(root, monkeypatch)


def test_paths_are_in_order_however_deep_they_are():
    deep = ["/".join(["d"] * depth) for depth in range(1, 2_000)]
    images = {"": ["e.png", "d.png"], deep[0]: ["e.png", "d-.png", "d0.png"], deep[-1]: ["1.png"]}
    found = folder_index._in_order(["", *deep], lambda folder: images.get(folder, []))
    paths = [os.path.join(folder, name) for folder, names in images.items() for name in names]
    assert list(found) == sorted(paths)
