"""Prompts from flags and files."""

import pytest

from cogview_jax.jobs.sample_input import read_prompts
from cogview_jax.runtime.errors import InputError


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
