"""Compiled programs are kept where nobody has said otherwise and there is a place for them."""

import os
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cogview_jax.runtime.compilation_cache import (
    VARIABLE,
    cache_folder,
    drop_damaged,
    enable_compilation_cache,
    prune,
)


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """A home of its own, and jax as it is where nothing was configured."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    shortest = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path / ".cache" / "cogview_jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)
    compilation_cache.reset_cache()


def compiled(number):
    return jax.jit(lambda x: x * number + 1)(jnp.ones(3)).block_until_ready()


def test_programs_are_kept_in_the_home_also_after_some_were_not(unset):
    compiled(3)
    assert not unset.exists()
    enable_compilation_cache()
    compiled(4)
    assert list(unset.glob("*-cache"))


def test_a_program_that_was_cut_short_is_written_again(unset, recwarn):
    enable_compilation_cache()
    compiled(5)
    (program,) = unset.glob("*lambda*-cache")
    program.write_bytes(b"")
    jax.clear_caches()
    jax.config.update("jax_compilation_cache_dir", None)
    enable_compilation_cache()
    compiled(5)
    assert program.read_bytes()
    assert not [each for each in recwarn if "compilation cache" in str(each.message)]
    drop_damaged(unset)
    assert program.exists()


def test_of_compressed_programs_those_that_end_early_are_dropped(tmp_path):
    whole = zlib.compress(bytes(range(256)) * 9)
    programs = {"whole": whole, "cut": whole[:-9], "other": b"no program"}
    for name, data in programs.items():
        (tmp_path / f"{name}-cache").write_bytes(data)
    drop_damaged(tmp_path)
    assert [file.name for file in tmp_path.glob("*-cache")] == ["whole-cache"]


def test_programs_that_go_meanwhile_keep_no_damaged_one(tmp_path):
    """Others are not looked at again the next time."""
    for i in range(20):
        (tmp_path / f"{i}-cache").symlink_to("gone")
    (tmp_path / "cut-cache").write_bytes(b"")
    drop_damaged(tmp_path)
    assert not (tmp_path / "cut-cache").exists()


def test_what_the_user_has_said_stays(unset, monkeypatch, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv(VARIABLE, "")
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert not unset.exists()


@pytest.mark.parametrize("home", ["", "relative", "/proc/nowhere", "file"])
def test_without_a_place_there_is_no_cache_and_no_error(unset, monkeypatch, tmp_path, home):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / home) if home == "file" else home)
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert cache_folder() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave its rights")
def test_a_user_without_home_or_rights_has_no_cache(tmp_path, root):
    script = (
        "import os; from cogview_jax.runtime.compilation_cache import cache_folder as f;"
        " os.setuid(12345); print(f())"
    )
    (tmp_path / ".cache").mkdir()
    for home in ({"HOME": str(tmp_path)}, {}):  # root's; none, and none in /etc/passwd
        said = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": str(root), **home},
            capture_output=True,
            text=True,
        )
        assert (said.stdout, said.stderr) == ("None\n", "")


def test_the_folder_for_caches_is_the_users(unset, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cogview_jax" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == unset


def test_what_was_not_read_for_longest_goes_first(tmp_path):
    for day, name in enumerate(["read", "old", "new", "newest"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (day, day))
    os.utime(tmp_path / "read", (9, 0))
    (tmp_path / "folder").mkdir()
    prune(tmp_path, 400)
    assert len(list(tmp_path.iterdir())) == 5
    prune(tmp_path, 250)
    assert {file.name for file in tmp_path.iterdir()} == {"read", "newest", "folder"}
    prune(tmp_path, 0)
    assert {file.name for file in tmp_path.iterdir()} == {"folder"}
    prune(tmp_path / "missing", 0)


def test_a_process_prunes_what_others_have_kept(unset, monkeypatch):
    monkeypatch.setattr(prune, "__defaults__", (1000,))
    unset.mkdir(parents=True)
    for number in range(5):
        (unset / str(number)).write_bytes(bytes(400))
    enable_compilation_cache()
    assert len(list(unset.glob("[!.]*"))) == 2
    compiled(5)
    assert len(list(unset.glob("[!.]*"))) > 2, "kept, though it took no second"
