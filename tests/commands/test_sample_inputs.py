"""Prompts from flags and files, and images from files."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cogview_jax.commands.sample_inputs import JobOptions, read_images, read_prompts
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.sampling.options import SamplingOptions


def test_prompts_of_the_flags_come_before_those_of_the_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("一个红色的圆形\n\n  two stars \n", encoding="utf-8")
    assert read_prompts(["first", "second"], str(file)) == [
        *("first", "second", "一个红色的圆形", "two stars")
    ]
    assert read_prompts(["only"], None) == ["only"]


def test_files_without_prompts_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for given, file, message in (
        ([], None, "no prompt: give --prompt TEXT"),
        ([], "empty.txt", "no prompt: give --prompt TEXT"),
        ([], "latin.txt", "latin.txt cannot be read as UTF-8 text"),
        (["x"], "none.txt", "none.txt cannot be read as UTF-8 text"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read_prompts(given, file and str(tmp_path / file))
        assert "\n" not in str(error.value)


def test_images_are_read_as_centred_squares(tmp_path):
    Image.new("RGB", (6, 4), (9, 8, 7)).save(tmp_path / "a.gif")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "b.png")
    read = read_images([str(tmp_path / "a.gif"), str(tmp_path / "b.png")], 4)
    colours = np.array([(9, 8, 7), (1, 2, 3)], np.uint8)
    np.testing.assert_array_equal(read, np.broadcast_to(colours[:, None, None], (2, 4, 4, 3)))


def test_files_that_are_no_image_are_one_line(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("no image")
    for file, why in (
        ("pipe.png", "expected a file, but this is a pipe"),
        ("/dev/zero", "expected a file, but this is a device"),
        ("gone.png", "No such file or directory"),
        ("text.png", "unreadable image: of no known format (PNG, JPEG, WEBP, BMP, GIF, TIFF"),
    ):
        path = str(tmp_path / file)
        with pytest.raises(InputError) as error:
            read_images([path], 4)
        assert str(error.value).startswith(f"--image {path} cannot be read: {why}")
    monkeypatch.setattr(faults, "PAUSES", ())

    def failing(path, *_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(SystemFault, match="Input/output error"):
        read_images([path], 4)


def test_lines_of_a_file_are_prompts_whatever_they_hold(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red\u2028circle\r\n\r\na blue\x0cstar\rone\u0085two\n".encode())
    expected = ["a red\u2028circle", "a blue\x0cstar", "one\u0085two"]
    assert read_prompts([], str(file)) == expected


def test_prompts_come_through_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(pipe.write_text, "a red circle\na star\n")
        assert read_prompts([], str(pipe)) == ["a red circle", "a star"]


def test_files_that_are_no_prompts_are_one_line(tmp_path):
    (tmp_path / "utf16.txt").write_text("a red circle", encoding="utf-16")
    with open(tmp_path / "endless.txt", "wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "lines.txt").write_bytes(b"\n" * 1_000_001)
    for name, message in (
        ("utf16.txt", r"utf16.txt cannot be read as UTF-8 text: line 1 is no UTF-8 \(byte 0xff\)"),
        ("endless.txt", "endless.txt cannot be read .*: it is larger than 67108864 bytes"),
        ("lines.txt", "number of lines 1000001: expected at most 1000000"),
        (".", "cannot be read as UTF-8 text: Is a directory"),
        ("a\0b", "cannot be read .*: a name of a file holds no NUL"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read_prompts([], f"{tmp_path}/{name}")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"prompt 'caf\\udce9' is no Unicode text"):
        read_prompts([b"caf\xe9".decode(errors="surrogateescape")], None)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_images": 10**12}, "--num_images 1000000000000: expected at most 1000000"),
        ({"batch_size": 10**9}, "batch_size 1000000000: expected at most 4096"),
        ({"batch_size": 0}, "batch_size 0: expected at least 1"),
        ({"seed": -1}, "seed -1: expected 0 to 4294967295"),
        ({"seed": 2**32}, "seed 4294967296: expected 0 to 4294967295"),
    ],
)
def test_numbers_are_bounded(numbers, message):
    with pytest.raises(InputError, match=message):
        count = numbers.pop("num_images", 1)
        JobOptions(SamplingOptions(**numbers), count)
