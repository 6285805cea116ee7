"""What makes the folder of Fashion-MNIST: its files, the pictures and their captions."""

import gzip
import importlib.util
import sys

import numpy as np
import pytest

from cogview_jax.data import fashion_set
from cogview_jax.data.fashion_set import Shown
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.runtime.errors import InputError
from fashion_files import idx, write_files


@pytest.fixture(scope="module")
def make(root):
    spec = importlib.util.spec_from_file_location("make_fashion", root / "examples/fashion/make.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def run(make, *arguments):
    make.run(make._parser().parse_args([str(argument) for argument in arguments]))


def test_the_folder_is_read_by_its_source(make, tmp_path, capsys):
    found = write_files(tmp_path / "files")
    out = tmp_path / "data"
    run(make, "--files", tmp_path / "files", "--out", out, "--count", 12, 20)
    assert "12 pictures in" in capsys.readouterr().out
    for split, name, count in (("train", "train", 12), ("test", "t10k", 20)):
        source = FolderSource(out / split)
        assert len(source) == count
        for i in range(count):
            record = source[i]
            white = np.full((32, 32), 255)
            white[2:30, 2:30] -= found[name][i]
            np.testing.assert_array_equal(record.image, np.stack([white] * 3, axis=2))
            read = [fashion_set.parse_caption(text) for text in record.captions]
            assert [language for _, language in read] == ["en", "zh"]
            # Bars are of one grey; their box is counted slowly.
            rows, columns = np.nonzero(found[name][i])
            ratio = (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1)
            shape = 0 if ratio[1] < 0.6 * ratio[0] else 2 if ratio[1] >= 1.5 * ratio[0] else 1
            tone = {250: 0, 160: 1, 60: 2}[int(found[name][i].max())]
            assert {shown for shown, _ in read} == {Shown(i % 10, tone, shape)}
    assert "MIT" in (out / "NOTICE").read_text("utf-8")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-idx3", None, "there is none; --files names their folder"),
        ("train-images-idx3", lambda data: data[: len(data) // 2], "this one is cut off"),
        ("train-images-idx3", lambda data: b"PK\3\4" + data, "Not a gzipped file"),
        ("t10k-images-idx3", lambda data: data[:40] + b"?" * 99, "package dataset-fashion-mnist: "),
        (
            "t10k-images-idx3",
            lambda data: gzip.compress(gzip.decompress(data)[:-7]),
            "15,673 bytes of values, but its header says 20 x 28 x 28",
        ),
        ("t10k-images-idx3", lambda data: gzip.compress(b"\0\0\10\3\0"), "no idx file of bytes"),
        (
            "t10k-labels-idx1",
            lambda data: gzip.compress(idx(np.zeros((2, 2, 2), np.uint8))),
            "no idx file of bytes with 1 axes",
        ),
        (
            "train-images-idx3",
            lambda data: gzip.compress(idx(np.zeros((30, 32, 28), np.uint8))),
            "pictures of 32 x 28 pixels, expected 28 x 28",
        ),
        (
            "train-labels-idx1",
            lambda data: gzip.compress(idx(np.zeros(29, np.uint8))),
            "29 labels, but 30 pictures",
        ),
        (
            "train-labels-idx1",
            lambda data: gzip.compress(idx(np.full(30, 10, np.uint8))),
            "label 10, expected 0 to 9",
        ),
    ],
)
def test_other_files_are_told(make, tmp_path, file, change, message):
    write_files(tmp_path / "files")
    path = tmp_path / "files" / f"{file}-ubyte.gz"
    data = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(data))
    with pytest.raises(InputError, match=message) as told:
        run(make, "--files", tmp_path / "files", "--out", tmp_path / "out", "--count", 1, 1)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", 31, 1), "--count 31 1: train has 1 to 30 pictures"),
        (("--count", 1, 0), "--count 1 0: test has 1 to 20 pictures"),
        (("--out", "."), "is there already"),
        (("--out", f"{__file__}/out"), "is a file, expected a folder"),
    ],
)
def test_what_the_command_line_cannot_say(make, tmp_path, arguments, message):
    write_files(tmp_path / "files")
    given = ("--files", tmp_path / "files", "--out", tmp_path / "out", *arguments)
    with pytest.raises(InputError, match=message):
        run(make, *given)
    assert not (tmp_path / "out").exists()
