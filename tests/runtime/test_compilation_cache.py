"""Compiled programs are kept where nobody has said otherwise and there is a place for them."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cogview_jax.runtime.compilation_cache import VARIABLE, cache_folder, enable_compilation_cache


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """A home of its own, and jax as it is where nothing was configured."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path / ".cache" / "cogview_jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def compiled(number):
    return jax.jit(lambda x: x * number + 1)(jnp.ones(3)).block_until_ready()


def test_programs_are_kept_in_the_home_also_after_some_were_not(unset):
    compiled(3)
    assert not unset.exists()
    enable_compilation_cache()
    compiled(4)
    assert list(unset.iterdir())


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
