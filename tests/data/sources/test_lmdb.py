"""LMDBs as the package lmdb writes them: which keys are images, captions, and what is refused."""

import base64
import io
import json
import os
import pickle
import subprocess
import sys

import lmdb
import numpy as np
import pytest
from PIL import Image

from cogview_jax.data import lmdb_file
from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources.lmdb import Lmdb
from cogview_jax.data.sources.source import captions_of
from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.errors import InputError
from tar_files import png


def write(path, entries, *, subdir=True):
    """Writes an LMDB of keys, texts or bytes, and values: the same, or numbers of images."""

    def as_bytes(value):
        if isinstance(value, int):
            return png(value)
        return value.encode() if isinstance(value, str) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), map_size=1 << 24, subdir=subdir) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in entries.items():
            transaction.put(as_bytes(key), as_bytes(value))
    return path


def source(path, **settings):
    return Lmdb(path=str(path), **settings).open()


def numbers(found):
    return [int(found[i].image[0, 0, 0]) for i in range(len(found))]


@pytest.fixture(params=["by place", "by key"])
def way(request, monkeypatch):
    """How images are read: where they lie in the file is known, or it is not."""
    if request.param == "by key":
        monkeypatch.setattr(lmdb_file, "_mapped_at", lambda path: None)
    return request.param


@pytest.mark.usefixtures("way")
def test_every_value_is_what_lmdb_reads(tmp_path):
    """Of all sizes: within the pages of keys, and on pages of their own."""
    rng = np.random.default_rng(0)
    sizes = rng.permutation([*range(1, 40), *range(60, 260, 9)])
    entries = {}
    for i, side in enumerate(sizes.tolist()):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, 9, 3), np.uint8)).save(stream, "PNG")
        entries[f"{i:03}"] = stream.getvalue()
    found = source(write(tmp_path / "set", entries), require_captions=False)
    for i, data in enumerate(entries.values()):
        np.testing.assert_array_equal(found[i].image, np.asarray(Image.open(io.BytesIO(data))))
    assert max(map(len, entries.values())) > 4096 > min(map(len, entries.values()))


def test_images_are_read_without_mapping_the_file(tmp_path, monkeypatch):
    found = source(write(tmp_path / "set", {"a": 1, "b": 2}), require_captions=False)
    monkeypatch.setattr(lmdb_file, "opened", lambda path: 1 / 0)
    assert numbers(found) == [1, 2]


def test_every_key_is_an_image(tmp_path):
    write(tmp_path / "bedroom", {"b0c1": 2, "a9f8": 1, "图": 3})
    found = source(tmp_path / "bedroom", require_captions=False)
    assert [found.key(i) for i in range(3)] == [
        f"data.mdb/{name}" for name in ("a9f8", "b0c1", "图")
    ]
    assert numbers(found) == [1, 2, 3]
    assert found[0].captions == captions_of(found, 0) == ()
    assert found.describe() == "3 records of 1 LMDB; ignored 1: 1 for locking (lock.mdb)"
    message = r"3 images and no caption: expected keys of texts such as label-\* beside image-\*"
    with pytest.raises(InputError, match=message):
        source(tmp_path / "bedroom")


@pytest.mark.parametrize("texts", ["label", "caption", "text"])
def test_images_with_texts_as_they_are_usually_called(tmp_path, texts):
    entries = {f"image-{i:09d}": i for i in range(1, 4)} | {"num-samples": "3", "lexicon": "x"}
    entries |= {f"{texts}-{i:09d}": f" number {i}\n" for i in (1, 3)}
    found = source(write(tmp_path / "set", entries))
    assert len(found) == 3
    assert (found.key(2), found[2].captions) == ("data.mdb/000000003", ("number 3",))
    assert captions_of(found, 0) == ("number 1",)
    assert "1 keys that name no image (lexicon)" in found.describe()
    assert "3 records of 1 LMDB, 2 with a caption" in found.describe()
    with pytest.raises(BadRecord, match=r"data\.mdb/000000002: empty caption"):
        found[1]


def test_keys_that_are_named(tmp_path):
    entries = {"a.jpg": 1, "a.txt": json.dumps(["one", "一"]), "b.jpg": 2, "b.txt": "[two]"}
    entries |= {"c.jpg": 3, "c.txt": b"\xff", ".jpg": 4, "d.jpg": 5, "d.txt": "x" * (2**20 + 1)}
    write(tmp_path / "set.lmdb", entries, subdir=False)
    found = source(tmp_path / "set.lmdb", image_key="*.jpg", caption_key="*.txt")
    assert [found.key(i) for i in range(4)] == [f"set.lmdb/{name}" for name in "abcd"]
    assert [found[i].captions for i in range(2)] == [("one", "一"), ("[two]",)]
    for i, why in ((2, "its text is not UTF-8"), (3, "a text of 1048577 bytes")):
        with pytest.raises(BadRecord, match=why):
            found[i]
    for pattern in ("image", "*-*"):
        with pytest.raises(SettingError, match=r"expected keys with one \*"):
            source(tmp_path / "set.lmdb", image_key=pattern)


def write_pairs(root, pairs):
    entries = {str(i): pickle.dumps(pair) for i, pair in enumerate(pairs)}
    write(root / "pairs", entries | {"num_samples": str(len(pairs))})


def chinese_clip(root, pairs, images=(10, 7, 2000)):
    """Writes LMDBs with the keys and values of cn_clip/preprocess/build_lmdb_dataset.py."""
    write_pairs(root, pairs)
    entries = {str(i): base64.b64encode(png(i % 251)) for i in images}
    write(root / "imgs", entries | {"num_images": str(len(images))})
    return root


@pytest.mark.usefixtures("way")
def test_images_and_pairs_of_chinese_clip(tmp_path, capsys):
    pairs = [(7, 0, "seven"), (10, 1, "ten"), (7, 2, "七"), (2000, 2**40, "x" * 300)]
    root = chinese_clip(tmp_path / "train", pairs + [(10, i, f"no. {i}") for i in range(3, 20)])
    found = source(root)
    assert [found.key(i) for i in range(3)] == [f"imgs/data.mdb/{i}" for i in (10, 2000, 7)]
    assert found[0].captions == ("ten", *(f"no. {i}" for i in range(3, 20)))
    assert [found[i].captions for i in (1, 2)] == [("x" * 300,), ("seven", "七")]
    assert numbers(found) == [10, 2000 % 251, 7]
    del found
    capsys.readouterr()
    write_pairs(root, [(7, 0, "new"), ("10", 0, "text key"), [7, 0, "no tuple"]])
    found = source(root)
    assert "pairs/data.mdb was changed: it is made anew" in capsys.readouterr().err
    assert [found.captions(i) for i in (0, 2)] == [("text key",), ("new",)]
    assert "1 pairs that cannot be read (2)" in found.describe()


@pytest.mark.parametrize("count", ["", "x", "9" * 5000, str(10**12)])
def test_a_number_of_pairs_that_cannot_be(tmp_path, count):
    root = chinese_clip(tmp_path / "train", [(7, 0, "seven")])
    write(root / "pairs", {"num_samples": count or "-1"})
    with pytest.raises(InputError, match="it has 2 keys, and num_samples is '"):
        source(root)


def test_pairs_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    found = source(chinese_clip(tmp_path / "train", [(7, 0, Trap()), (10, 0, "ten")]))
    assert not (tmp_path / "trap").exists()
    assert "1 pairs that cannot be read (0)" in found.describe()


def test_rows_of_the_release_are_told(tmp_path):
    row = np.arange(1100)
    write(tmp_path / "set", {"0": pickle.dumps(row), "1": pickle.dumps(row), "length": "2"})
    with pytest.raises(InputError, match="pickled rows of tokens, as the release of CogView"):
        source(tmp_path / "set")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pickle.dumps((png(1), 3)), "its values are pickled objects, which could run anything"),
        (b"\x08\x03\x10\x40", "first values are none, such as a: unreadable image"),
    ],
)
def test_values_that_are_no_images(tmp_path, value, message):
    with pytest.raises(InputError, match=message):
        source(write(tmp_path / "set", {"a": value, "b": value}))


def test_keys_that_are_not_there(tmp_path):
    write(tmp_path / "set", {"a": 1, "b": 2})
    message = r"no image; .*2 keys that name no image \(such as a\)"
    for pattern in ("image-*", "*.jpg"):
        with pytest.raises(InputError, match=message):
            source(tmp_path / "set", image_key=pattern)
    write(tmp_path / "odd", {b"image-\xff": 1, b"image-\xff\xff": 2, b"label-\xff": "one"})
    with pytest.raises(InputError, match=r"none of 2 records can be used, such as .* no line of"):
        source(tmp_path / "odd")


def test_links_to_lmdbs_are_followed(tmp_path):
    root = chinese_clip(tmp_path / "train", [(7, 0, "seven"), (10, 1, "ten"), (2000, 2, "x")])
    os.rename(root / "imgs" / "data.mdb", tmp_path / "elsewhere")
    (root / "imgs" / "data.mdb").symlink_to(tmp_path / "elsewhere")
    assert numbers(source(root)) == [10, 2000 % 251, 7]


def test_one_bad_value_or_key_costs_no_other(tmp_path):
    write(tmp_path / "set", {"a": "no image", "b": 1, b"\xff": 2, "c\nd": 3})
    found = source(tmp_path / "set", require_captions=False)
    outcomes = []
    for i in range(len(found)):
        try:
            outcomes.append(int(found[i].image[0, 0, 0]))
        except BadRecord as error:
            outcomes.append(str(error))
    assert outcomes[0].startswith("data.mdb/a: unreadable image")
    assert outcomes[1:] == [
        1,
        r"data.mdb/c\nd: its key is no line of text",
        r"data.mdb/\xff: its key is no line of text",
    ]


def test_what_is_no_whole_lmdb(tmp_path):
    folder = write(tmp_path / "set", {f"{i:05}": i % 250 for i in range(300)})
    with open(folder / "data.mdb", "r+b") as file:
        size = file.seek(0, 2)
        file.truncate(size - 4096)
    message = rf"data\.mdb: breaks off: {size - 4096} bytes, expected {size}"
    with pytest.raises(InputError, match=message):
        source(folder)
    (folder / "data.mdb").write_bytes(b"no LMDB " * 4096)
    with pytest.raises(InputError, match=r"expected an LMDB, whole and closed: .*MDB_INVALID"):
        source(folder)
    (folder / "data.mdb").unlink()
    with pytest.raises(
        InputError, match=r"expected LMDBs \(data\.mdb in a folder\), there are none"
    ):
        source(folder)


def test_several_lmdbs_and_several_sources_of_one(tmp_path):
    for n in (1, 2):
        write(tmp_path / f"{n}.lmdb", {"image-1": n, "label-1": f"number {n}"})
    one, two = source(tmp_path), source(tmp_path)
    assert [one.key(i) for i in range(2)] == ["1.lmdb/data.mdb/1", "2.lmdb/data.mdb/1"]
    assert numbers(one) == numbers(two) == [*numbers(source(tmp_path / "1.lmdb")), 2] == [1, 2]


@pytest.mark.usefixtures("way")
def test_one_that_is_changed_is_indexed_anew(tmp_path, capsys):
    folder = write(tmp_path / "set", {"a": 1})
    code = (
        "import sys, lmdb\n"
        "with lmdb.open(sys.argv[1]) as environment, environment.begin(write=True) as writing:\n"
        "    writing.put(b'b', writing.get(b'a'))\n"
    )
    found = source(folder, require_captions=False)
    assert numbers(found) == [1]
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    with pytest.raises(InputError, match=r"data\.mdb: changed while it was read: start again"):
        found[0]
    assert numbers(source(folder, require_captions=False)) == [1, 1]
    assert "data.mdb was changed: it is made anew" in capsys.readouterr().err


def test_without_the_package_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    find = "importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    with pytest.raises(InputError, match=r"kind = 'lmdb' needs lmdb: .*cogview-jax\[lmdb\]"):
        source(tmp_path)
