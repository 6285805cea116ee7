"""Tars of captioned images: which samples they hold, what each says, and all that can be wrong."""

import io
import os
import tarfile

import numpy as np
import pytest

from cogview_jax.data.loader import batches
from cogview_jax.data.records import BadRecord
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.parquet import Parquet
from cogview_jax.data.sources.source import SourceConfig, captions_of, listing, opened
from cogview_jax.data.sources.webdataset import WebDataset
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from table_files import image_table, write_parquet
from tar_files import png, write_samples, write_tar


def source(path, **settings):
    return WebDataset(path=str(path), **settings).open()


def keys(source):
    return [source.key(i).partition(".tar/")[2] for i in range(len(source))]


def test_samples_as_img2dataset_writes_them(tmp_path):
    for n in range(2):
        write_samples(tmp_path / f"0000{n}.tar", range(3 * n, 3 * n + 3))
        (tmp_path / f"0000{n}.parquet").write_bytes(b"")
        (tmp_path / f"0000{n}_stats.json").write_text("{}")
    found = build(SourceConfig, {"kind": "webdataset", "path": str(tmp_path)}).open()
    assert len(found) == 6
    assert found.key(4) == found[4].key == "00001.tar/0004"
    assert found[4].captions == captions_of(found, 4) == ("number 4",)
    np.testing.assert_array_equal(found[4].image, np.full((8, 6, 3), (4, 1, 2), np.uint8))
    assert found.describe() == (
        "6 records of 2 tars, 6 with a caption; ignored 4: 2 of ending .json (such as"
        " 00000_stats.json), 2 of ending .parquet (such as 00000.parquet)"
    )


def test_every_image_is_what_tarfile_reads(tmp_path):
    path = write_samples(tmp_path / "a.tar", range(20))
    found = source(path)
    with tarfile.open(path) as tar:
        images = [each for each in tar if each.name.endswith(".png")]
        for i, each in enumerate(images):
            record = found._index[i]
            assert record.key == f"a.tar/{each.name[:-4]}"
            assert found._index.read(record) == tar.extractfile(each).read()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # The first dot of the file name, and not of its folder, ends the key.
        (["0.5_a.png", "0.5_b.txt"], ["0"]),
        (["v1.0/a.png", "v1.0/a.txt", "v1.0/b.png"], ["v1.0/a", "v1.0/b"]),
        (["./a.png", "./a.txt"], ["./a"]),
        (["a/1.png", "b/1.png"], ["a/1", "b/1"]),
        # Endings are read in small letters.
        (["a.PNG", "a.Txt"], ["a"]),
        # Entries of a key that do not stand together are two samples.
        (["a.png", "b.png", "a.png"], ["a", "b", "a"]),
        (["a.png", "b.png", "a.txt", "b.txt"], ["a", "b"]),
        # What belongs to no sample does not cut one.
        (["a.png", "._a.txt", "README", "__meta__", "__index__/a.json", "a.txt"], ["a"]),
        (["a.seg.png", "a.cls"], ["a"]),
        (["图.png", "图.txt"], ["图"]),
    ],
)
def test_keys_are_those_of_webdataset(tmp_path, names, expected):
    write_tar(
        tmp_path / "a.tar", [(name, png(1) if "n" in name[-2:].lower() else "x") for name in names]
    )
    found = source(tmp_path, require_captions=False)
    assert keys(found) == expected


def test_entries_apart_from_their_image_are_told(tmp_path):
    names = [("a.png", png(1)), ("b.png", png(2)), ("a.txt", "a"), ("b.txt", "b")]
    write_tar(tmp_path / "a.tar", names)
    message = (
        r"2 images and no caption: expected .txt, or \"caption\" in its .json in each sample;"
        r" ignored 2: 2 samples without an image \(such as a\)"
    )
    with pytest.raises(InputError, match=message):
        source(tmp_path)
    said = source(tmp_path, require_captions=False).describe()
    assert "; 2 keys come again later in their tar, as samples of their own; ignored 2" in said


@pytest.mark.parametrize(
    ("entries", "settings", "expected"),
    [
        ({"a.txt": " two\nlines \n"}, {}, ("two\nlines",)),
        ({"a.txt": "\ufefftext", "a.json": {"caption": "field"}}, {}, ("text",)),
        ({"a.json": {"caption": "field"}}, {}, ("field",)),
        ({"a.json": {"caption": ["one", "two"]}}, {}, ("one", "two")),
        ({"a.json": {"alt": "b", "long": "c"}}, {"caption_keys": ("long", "alt")}, ("c", "b")),
        (
            {"a.txt": "text", "a.json": {"alt": "b", "none": None}},
            {"caption_keys": ("txt", "none", "alt", "other")},
            ("text", "b"),
        ),
        ({"a.txt": "nul\0 inside"}, {}, ("nul  inside",)),
    ],
)
def test_captions(tmp_path, entries, settings, expected):
    write_tar(tmp_path / "a.tar", {"a.png": png(1)} | entries)
    assert source(tmp_path, **settings)[0].captions == expected


def test_captions_are_read_without_the_tar(tmp_path):
    path = write_samples(tmp_path / "a.tar", range(3))
    found = source(path)
    os.unlink(path)
    assert captions_of(found, 2) == ("number 2",)
    with pytest.raises(InputError, match=r"a\.tar: No such file"):
        found[2]


def test_a_caption_key_that_no_sample_has_is_refused_with_those_there_are(tmp_path):
    write_samples(tmp_path / "a.tar", range(2))
    message = "expected title in each sample; its .json has caption, alt .data.source.caption_keys"
    with pytest.raises(InputError, match=message):
        source(tmp_path, caption_keys=("title",))


def test_the_image_of_several(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.left.png": png(1), "a.jpg": png(2), "a.right.png": png(3)})
    for key, value in (("", 1), ("jpg", 2), ("right.png", 3), ("JPG", 2)):
        found = source(tmp_path, image_key=key, require_captions=False)
        assert found[0].image[0, 0, 0] == value
    with pytest.raises(InputError, match=r"ignored 1: 1 samples without an image \.webp \(a\)"):
        source(tmp_path, image_key="webp", require_captions=False)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a.png": b""}, "a.tar/a: image of 0 bytes: expected 1 to"),
        ({"a.png": png(1), "a.txt": b"\xff"}, "a.tar/a: .txt is not UTF-8"),
        ({"a.png": png(1), "a.json": "{"}, "a.tar/a: .json cannot be read"),
        ({"a.png": png(1), "a.json": "[" * 99_999}, "a.tar/a: .json is nested too deeply"),
        ({"a.png": png(1), "a.json": [1]}, "a.tar/a: .json holds a list: expected an object"),
        ({"a.png": png(1), "a.json": {"caption": 3}}, "a.tar/a: 'caption' of .json: expected a t"),
        ({"a.png": png(1), "a.txt": "x" * (1 << 20) + "x"}, "a.tar/a: .txt of 1048577 bytes: exp"),
        ({"a.png": png(1), "a.json": '{"caption": "\\ud800"}'}, "a.tar/a: caption is no Unicode t"),
        ({"a.png": png(1)}, "a.tar/a: empty caption"),
        ({"a.png": png(1)[:40], "a.txt": "a"}, "a.tar/a: unreadable image"),
    ],
)
def test_bad_records_keep_their_place(tmp_path, entries, message):
    write_tar(tmp_path / "a.tar", entries | {"b.png": png(5), "b.txt": "five"})
    found = source(tmp_path)
    with pytest.raises(BadRecord) as caught:
        found[0]
    assert str(caught.value).startswith(message)
    assert found.key(0) == caught.value.key
    assert found[1].captions == ("five",)


def test_tars_of_bad_records_alone_are_refused_with_the_first(tmp_path):
    latin = {"a.png": png(1), "a.txt": "ñ".encode("latin-1"), "b.png": png(2), "b.txt": b"\xff"}
    write_tar(tmp_path / "a.tar", latin)
    with pytest.raises(InputError, match=r"none of 2 records can be used, such as a: \.txt is not"):
        source(tmp_path)


def test_links_out_of_a_tar_are_never_opened(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(7))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            tar.addfile(info)
        info = tarfile.TarInfo(str(tmp_path / "secret.png"))
        info.size = 9
        tar.addfile(info, io.BytesIO(b"no image!"))
    found = source(tmp_path, require_captions=False)
    assert keys(found) == [f"{tmp_path}/secret"]
    with pytest.raises(BadRecord, match="unreadable image"):
        found[0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("{0..2}.tar", "0 1 2"),
        ("{2..0..2}.tar", "2 0"),
        ("{0,2}.tar", "0 2"),
        ("{10,0{08..10}}.tar", "10 008 009 010"),
        ("*.tar", "0 008 009 010 1 10 2"),
        ("2.tar,[01].tar", "2 0 1"),
        ("2.tar, 2.tar,{2,1}.tar", "2 1"),
        ("below", "3"),
        ("**/{3,1}.tar", "3 1"),
        (".", "0 008 009 010 1 10 2 3"),
        ("a,b.tar", "5"),
        ("{}.tar", "6"),
    ],
)
def test_several_tars_by_one_text(tmp_path, monkeypatch, path, expected):
    monkeypatch.chdir(tmp_path)
    os.mkdir("below")
    for name in ("0", "1", "2", "10", "008", "009", "010", "below/3"):
        write_tar(f"{name}.tar", {f"{os.path.basename(name)}.png": png(1)})
    if path == "a,b.tar":
        write_tar(path, {"5.png": png(1)})
    if path == "{}.tar":
        write_tar(path, {"6.png": png(1)})
    assert keys(source(path, require_captions=False)) == expected.split()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{0..3}.tar", r"path='{0..3}.tar': 2.tar is not there, nor 1 other$"),
        ("gone", "gone is not there"),
        ("x*.tar", r"expected tars, there are none; nothing ignored"),
        ("other", r"none; ignored 2: 1 compressed tars \(.tar.gz\), which have to be unpacked"),
        ("other/a.tar.gz", "other/a.tar.gz: records can be found in an uncompressed tar only: unp"),
        ("other/a.txt", "a.txt: expected a tar, this is none"),
        ("{0..99999999}.tar", "expected at most 100000 files"),
        ("{0.." + "9" * 5000 + "}.tar", "is not there"),
        ("empty.tar", "no sample with an image in 1 tar; nothing ignored"),
        ("", "data.source.path is empty: name the tars"),
    ],
)
def test_what_is_not_there(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    write_samples("0.tar", range(1))
    write_samples("1.tar", range(1))
    write_tar("empty.tar", {})
    os.mkdir("other")
    for name in ("a.tar.gz", "a.txt"):
        (tmp_path / "other" / name).write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match=message) as caught:
        source(path)
    assert "\n" not in str(caught.value)


def test_the_setting_is_named_where_a_pattern_finds_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = rf"^data.source.path = 'x\*.tar' \(looked for in {tmp_path}\): expected tars, there"
    with pytest.raises(InputError, match=said):
        opened(WebDataset(path="x*.tar"))


def test_all_tars_that_break_off_are_named_at_once(tmp_path):
    for n in range(6):
        path = write_samples(tmp_path / f"{n}.tar", range(3))
        if n != 2:
            with open(path, "r+b") as file:
                file.truncate(700)
    with pytest.raises(InputError) as caught:
        source(tmp_path)
    named = "; ".join(
        f"{tmp_path}/{n}.tar: breaks off: the entry '0000.png' at byte 0 takes 1024"
        " bytes, and the file ends at byte 700; get it anew, or leave it out"
        for n in (0, 1, 3)
    )
    assert str(caught.value) == f"{named} (and 2 more of 6 files)"
    assert not list(tmp_path.glob(".cogview-index/*"))


def test_linked_folders_count_once_and_links_in_a_circle_end(tmp_path):
    for place in ("set/a", "elsewhere"):
        os.makedirs(tmp_path / place)
        write_samples(tmp_path / place / f"{place[-1]}.tar", range(2))
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "circle").symlink_to(tmp_path / "set")
    found = source(tmp_path / "set")
    assert [found.key(i) for i in (0, 2)] == ["a/a.tar/0000", "linked/e.tar/0000"]
    assert len(found) == 4


def test_tars_in_several_folders(tmp_path):
    for n, place in enumerate(("b", "a")):
        os.mkdir(tmp_path / place)
        write_samples(tmp_path / place / "0.tar", range(n, n + 1))
    found = source(f"{tmp_path}/b,{tmp_path}/a/*.tar")
    assert [found.key(i) for i in range(2)] == ["b/0.tar/0000", "a/0.tar/0001"]
    assert os.listdir(tmp_path / "b") == ["0.tar", ".cogview-index"]


def test_a_tar_without_an_end_is_told(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.png": png(1), "b.png": png(2)})
    with open(path, "r+b") as file:
        file.truncate(1024)
    found = source(path, require_captions=False)
    assert keys(found) == ["a"]
    said = "; 1 tars have no end, so more may be missing (such as a.tar); nothing ignored"
    assert found.describe().endswith(said)


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "packed"])
def test_a_run_reads_on_exactly_where_it_was(tmp_path, kind):
    for n in range(3):
        numbers = range(7 * n, 7 * n + 7)
        if kind == "webdataset":
            write_samples(tmp_path / f"{n}.tar", numbers)
        else:
            options = {"row_group_size": 3} if kind == "packed" else {}
            write_parquet(tmp_path / f"{n}.parquet", image_table(numbers), **options)

    def reopened():
        return (WebDataset if kind == "webdataset" else Parquet)(path=str(tmp_path)).open()

    def rows(start, count, parts=(0,), ways=1):
        stream = batches(
            reopened(),
            global_batch=4,
            seed=5,
            transform=lambda record, _: record.image[0, 0, 0],
            skipped=SkippedLog(tmp_path / "run"),
            start=start,
            parts=parts,
            ways=ways,
        )
        found = [next(stream).tolist() for _ in range(count)]
        stream.close()
        return found

    unbroken = rows(0, 12)
    assert sorted([row for step in unbroken for row in step][:21]) == list(range(21))
    assert rows(7, 5) == unbroken[7:]
    hosts = [rows(7, 5, parts=(part,), ways=2) for part in range(2)]
    assert [[*a, *b] for a, b in zip(*hosts, strict=True)] == unbroken[7:]


def test_the_names_of_records_tell_two_sets_apart_wherever_they_lie(tmp_path):
    names = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        write_samples(tmp_path / place / "0.tar", range(3))
        names.append(listing(source(tmp_path / place)))
    write_samples(tmp_path / "b" / "0.tar", range(4))
    assert names[0] == names[1] != listing(source(tmp_path / "b"))
