"""Numbers that seeds draw, under other settings of jax."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import tiny
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.random_key import random_key

TESTS = Path(__file__).parents[1]


def test_a_key_is_threefry_s_whatever_the_default_is():
    # Threefry's key of a seed is the seed in two words (Salmon et al. 2011).
    with jax.default_prng_impl("rbg"):
        assert jax.random.key_data(random_key(7)).tolist() == [0, 7]
        assert str(jax.random.key_impl(random_key(7))) == "threefry2x32"


def test_all_keys_are_made_here(root):
    texts = {path: path.read_text() for path in (root / "cogview_jax").rglob("*.py")}
    made = [path.name for path, text in texts.items() if "random.key(" in text or "PRNGKey" in text]
    assert made == ["random_key.py"]


def test_settings_that_would_draw_other_numbers_are_refused():
    with (
        jax.threefry_partitionable(False),
        pytest.raises(InputError, match="JAX_THREEFRY_PARTITIONABLE is False: the same seeds"),
    ):
        random_key(0)
    jax.config.update("jax_random_seed_offset", 3)
    try:
        with pytest.raises(InputError, match="JAX_RANDOM_SEED_OFFSET is 3"):
            random_key(0)
    finally:
        jax.config.update("jax_random_seed_offset", 0)


def test_draws_and_the_first_loss_do_not_follow_jax_s_random_settings(root):
    """Another process, so that nothing is traced already."""
    command = "import tiny; print(tiny.draw(9).tolist(), tiny.first_loss().hex())"
    settings = {"JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg", "JAX_HIGH_DYNAMIC_RANGE_GUMBEL": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (TESTS, root)))}
    result = subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | settings | paths,
        capture_output=True,
        text=True,
        check=True,
    )
    drawn = tiny.draw(9)
    assert len(np.unique(drawn)) > 3
    assert result.stdout.strip() == f"{drawn.tolist()} {tiny.first_loss().hex()}"
