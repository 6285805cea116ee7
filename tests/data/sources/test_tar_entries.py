"""Entries of tars, held against Python's own reader, and tars that are none or not whole."""

import gzip
import io
import random
import shutil
import subprocess
import tarfile

import pytest

from cogview_jax.data.sources.tar_entries import TarFile
from cogview_jax.runtime.errors import InputError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def entries(path):
    with TarFile(str(path)) as tar:
        return list(tar.entries())


def files(path):
    return [(entry.name, entry.offset, entry.size) for entry in entries(path) if not entry.kind]


def files_by_tarfile(path):
    with tarfile.open(path, "r:") as tar:
        return [(each.name, each.offset_data, each.size) for each in tar if each.isreg()]


def add(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", FORMATS)
def test_files_are_where_tarfile_finds_them(tmp_path, kind):
    rng, path = random.Random(3), tmp_path / "a.tar"
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        add(tar, "folder", type=tarfile.DIRTYPE)
        for i, size in enumerate((0, 1, 511, 512, 513, 20_000, *rng.sample(range(9000), 30))):
            long = "/".join(["d" * 60] * rng.randint(1, 3))
            name = rng.choice([f"{i}.jpg", f"{long}/{i}.x.jpg", f"folder/图{i}.png"])
            if kind != "ustar" and i % 5 == 0:
                name = f"{'n' * 300}{i}.jpg"
            add(tar, name, rng.randbytes(size))
        add(tar, "link.jpg", type=tarfile.SYMTYPE, linkname="l" * (90 if kind == "ustar" else 300))
        add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="1.jpg")
        add(tar, "pipe.jpg", type=tarfile.FIFOTYPE)
        add(tar, "in one piece.jpg", b"7" * 600, type=tarfile.CONTTYPE)
        add(tar, "last.jpg", b"data")
    assert files(path) == files_by_tarfile(path)
    kinds = [entry.kind for entry in entries(path) if entry.kind]
    assert kinds == ["folders", "links", "links", "devices and pipes"]


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_sizes_beyond_eight_gigabytes(tmp_path, kind):
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:  # the file system keeps no zeros that are skipped
        for name, size in (("large.jpg", 9 << 30), ("small.jpg", 5)):
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(FORMATS[kind]))
            file.seek(-(-size // 512) * 512, io.SEEK_CUR)
        file.write(bytes(1024))
    assert files(path) == files_by_tarfile(path)
    assert files(path)[1][1] > 9 << 30


@pytest.mark.skipif(not shutil.which("tar"), reason="needs GNU tar, which writes sparse files")
@pytest.mark.parametrize("kind", ["gnu", "posix"])
def test_sparse_files_are_none_and_what_follows_is_found(tmp_path, kind):
    with open(tmp_path / "1.jpg", "wb") as file:
        for _ in range(40):  # more pieces than a header has room for
            file.write(b"x" * 4096)
            file.seek(1 << 16, io.SEEK_CUR)
        file.write(b"end")
    (tmp_path / "2.jpg").write_bytes(b"y" * 700)
    command = ["tar", "-S", f"--format={kind}", "-cf", "a.tar", "1.jpg", "2.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert [entry.kind for entry in entries(tmp_path / "a.tar")] == ["sparse files", ""]
    assert files(tmp_path / "a.tar") == files_by_tarfile(tmp_path / "a.tar")[1:]


def whole(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            add(tar, f"{i}.jpg", bytes([65 + i]) * 1000)
    return path


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3 * 1536 + 700, "the entry '3.jpg' at byte 4608 takes 1536 bytes, and .* at byte 5308"),
        (4 * 1536 - 5, "the entry '3.jpg' at byte 4608 takes 1536 bytes, and .* at byte 6139"),
        (2 * 1536 + 100, "the header at byte 3072 takes 512 bytes, and the file ends at byte 3172"),
    ],
)
def test_a_tar_that_breaks_off_is_refused_with_the_place(tmp_path, size, message):
    path = whole(tmp_path)
    with open(path, "r+b") as file:
        file.truncate(size)
    with pytest.raises(InputError, match=message) as caught:
        entries(path)
    assert str(caught.value).startswith(f"{path}: breaks off: ")


def test_what_stands_behind_the_end_is_no_part_of_it(tmp_path):
    path = whole(tmp_path)
    found = files(path)
    with open(path, "ab") as file:
        file.write(b"anything" * 100)
    assert files(path) == found == files_by_tarfile(path)


def test_a_damaged_header_is_refused_with_its_place(tmp_path):
    path = whole(tmp_path)
    data = bytearray(path.read_bytes())
    data[1536 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.tar: damaged at byte 1536: expected the header"):
        entries(path)


def test_sums_of_signed_bytes_are_right_too(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, "图.jpg", b"data")
    data = bytearray(path.read_bytes())
    header = data[:148] + b" " * 8 + data[156:512]
    signed = sum(byte - 256 * (byte > 127) for byte in header)
    data[148:156] = b"%06o\0 " % signed
    path.write_bytes(data)
    assert files(path) == files_by_tarfile(path) == [("图.jpg", 512, 4)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"x" * 9999 + bytes(range(256)) * 9), "compressed with gzip: .* `gunzip`"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 600, "compressed with zstd"),
        (b"<html>" * 200, "expected a tar, this is none"),
        (b"", "expected a tar, this file is empty"),
    ],
)
def test_files_that_are_no_tars(tmp_path, data, message):
    path = tmp_path / "a.tar"
    path.write_bytes(data.ljust(600, b"\0") if data else data)
    with pytest.raises(InputError, match=message):
        entries(path)


def test_a_header_cannot_ask_for_memory(tmp_path):
    info = tarfile.TarInfo("name")
    info.type, info.size = b"L", 1 << 30
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(2 << 30)
    with pytest.raises(InputError, match="damaged at byte 0: an entry of 1073741824 bytes"):
        entries(path)
