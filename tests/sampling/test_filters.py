"""Filters against sorting in Python and the official sampler; samples have their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import reference
from cogview_jax.interop.official.fill import filtered, seeded_choice
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.sampling.filters import (
    guided,
    keep_top_k,
    keep_top_p,
    row_settings,
    sample_token,
)
from cogview_jax.sampling.options import SamplingConfig


@pytest.fixture(scope="module")
def logits():
    """Rows without ties, with many, all equal, and with tokens already excluded."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((4, 30)).astype(np.float32) * 2
    rows[1] = np.round(rows[1])
    rows[2] = 0.5
    rows[3, 7:] = -np.inf
    return rows


@pytest.mark.parametrize("k", [0, 1, 2, 5, 12, 29, 30, 100])
def test_top_k_equals_sorting(logits, k):
    result = keep_top_k(logits, k)
    for row, ours in zip(logits, result, strict=True):
        np.testing.assert_array_equal(ours, reference.keep_top_k(row, k))


@pytest.mark.parametrize("axes", [("data", None), (None, "tensor"), ("data", "tensor")], ids=str)
def test_logits_split_over_devices_are_filtered_as_whole_ones(axes):
    """XLA once ended the process here, where it sorted."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))
    whole = jax.random.normal(jax.random.key(0), (4, 64))
    split = jax.device_put(whole, NamedSharding(mesh, PartitionSpec(*axes)))
    found = jax.jit(lambda x: keep_top_p(keep_top_k(x, 9), 0.8))(split)
    np.testing.assert_array_equal(found, keep_top_p(keep_top_k(whole, 9), 0.8))


@pytest.mark.parametrize("p", [1e-6, 0.2, 0.5, 0.9, 0.999, 1.0])
def test_top_p_equals_accumulating_row_by_row(logits, p):
    result = keep_top_p(logits, p)
    for row, ours in zip(logits, result, strict=True):
        np.testing.assert_array_equal(ours, reference.keep_top_p(row, p))


def test_top_p_by_hand():
    shares = np.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.1, 0.2, 0.6]])
    kept = np.isfinite(keep_top_p(np.log(shares), 0.7))
    assert kept.tolist() == [[True, True, False, False], [False, False, True, True]]


def sample(logits, keys, config):
    """`sample_token` with the same settings for every row."""
    return sample_token(jnp.asarray(logits), keys, row_settings([config] * len(logits)))


def frequencies(logits, config, trials):
    """How often `sample` takes each token of each row, over many keys."""
    keys = jax.random.split(jax.random.key(0), (trials, len(logits)))
    tokens = jax.jit(jax.vmap(lambda keys: sample(logits, keys, config)))(keys)
    return np.stack([np.bincount(row, minlength=logits.shape[1]) for row in np.asarray(tokens).T])


@pytest.mark.parametrize(
    "config", [SamplingConfig(1.0, 0), SamplingConfig(1.5, 8, 0.8), SamplingConfig(0.7, 12)]
)
def test_tokens_are_drawn_with_their_filtered_probabilities(logits, config):
    """Chi-square: its mean is the degrees of freedom, its variance twice as many."""
    trials = 20_000
    counts = frequencies(jnp.asarray(logits), config, trials)
    for row, count in zip(logits, counts, strict=True):
        expected = trials * reference.softmax(reference.filtered(row, config))
        assert not count[expected == 0].any()
        often = expected >= 5
        statistic = np.sum((count - expected)[often] ** 2 / expected[often])
        freedom = often.sum() - 1
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_temperature_zero_takes_the_likeliest_whatever_the_key(logits):
    keys = jax.random.split(jax.random.key(0), 4)
    for top_k, top_p in ((0, 1.0), (3, 0.5)):
        tokens = sample(logits, keys, SamplingConfig(0.0, top_k, top_p))
        np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-37, 1e-38, 1e-40, 1e-45, 5e-324])
def test_the_smaller_the_temperature_the_nearer_to_the_likeliest(temperature):
    logits = jnp.array([[1.0, 20.0, 19.0, 25.0, -3.0], [-9e4, -8e4, -1e5, -8.1e4, -jnp.inf]])
    keys = jax.random.split(jax.random.key(0), 2)
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.9), (0, 1e-45)):
        config = SamplingConfig(temperature, top_k, top_p)
        assert sample(logits, keys, config).tolist() == [3, 1]
        shares = filtered(jnp.pad(logits, ((0, 0), (1, 1))), config, 1, 6)
        np.testing.assert_array_equal(shares, np.eye(7)[[4, 2]])


@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e300])
def test_at_the_highest_temperatures_all_that_is_allowed_is_as_likely(temperature):
    logits = jnp.array([[1.0, 20.0, -jnp.inf, 25.0, -3.0]])
    shares = filtered(logits, SamplingConfig(temperature, 0), 0, 5)
    np.testing.assert_allclose(shares, [[0.25, 0.25, 0, 0.25, 0.25]])


@pytest.mark.parametrize("p", [1e-38, 1e-45, 5e-324])
def test_the_smallest_top_p_keeps_the_likeliest_alone(logits, p):
    kept = np.isfinite(keep_top_p(logits, p))
    np.testing.assert_array_equal(kept, logits == logits.max(axis=-1, keepdims=True))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logits_of_fewer_bits_are_drawn_from_as_float32(dtype):
    """Of equal logits in bfloat16 jax itself samples none but the first few."""
    flat, keys = jnp.zeros((500, 4096), dtype), jax.random.split(jax.random.key(0), 500)
    config = SamplingConfig(1.0, 0)
    assert abs(np.mean(sample(flat, keys, config)) - 2047.5) < 5 * 4096 / (12 * 500) ** 0.5
    some = jax.random.normal(jax.random.key(1), (2, 4096)).astype(dtype)
    wide = some.astype(jnp.float32)
    np.testing.assert_array_equal(keep_top_p(some, 0.5), keep_top_p(wide, 0.5))
    np.testing.assert_array_equal(guided(*some[:, None], 0.7), guided(*wide[:, None], 0.7))
    shares = filtered(some, config, 0, 4096)
    assert shares.dtype == jnp.float32
    choices = seeded_choice(0)(np.asarray(shares[:1], dtype), 500)
    assert 1000 < np.mean(choices) < 3000


def test_a_draw_depends_on_its_own_row_and_key_alone(logits):
    keys, config = jax.random.split(jax.random.key(1), 4), SamplingConfig(1.0, 20, 0.9)
    together = sample(logits, keys, config).tolist()
    alone = [sample(logits[i : i + 1], keys[i : i + 1], config).item() for i in range(4)]
    order = np.array([2, 0, 3, 1])
    assert together == alone
    assert sample(logits[order], keys[order], config).tolist() == [alone[i] for i in order]


def test_rows_of_different_settings_are_sampled_as_alone(logits):
    configs = [
        SamplingConfig(0.0, 5),
        SamplingConfig(1.3, 0, 0.6),
        SamplingConfig(1e-20, 7, 0.9),
        SamplingConfig(0.8, 12),
    ]
    keys = jax.random.split(jax.random.key(2), (50, 4))
    together = jax.vmap(lambda keys: sample_token(logits, keys, row_settings(configs)))(keys)
    for i, config in enumerate(configs):
        alone = [sample(logits[i : i + 1], own[i : i + 1], config).item() for own in keys]
        assert together[:, i].tolist() == alone


def test_no_new_value_of_a_setting_compiles_anything(logits):
    sample = jax.jit(lambda *rows: sample_token(*rows))
    keys = jax.random.split(jax.random.key(2), 4)
    for config in (SamplingConfig(), SamplingConfig(0.0), SamplingConfig(0.9, 17, 0.4, 3.0)):
        sample(logits, keys, row_settings([config] * 4))
    assert sample._cache_size() == 1


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_by_row_is_the_formula(guidance):
    with_text, without = np.random.default_rng(0).standard_normal((2, 3, 20)).astype(np.float32)
    scales = np.array([guidance, 1.0, 7.0], np.float32)
    expected = without + scales[:, None] * (with_text.astype(np.float64) - without)
    found = guided(jnp.asarray(with_text), jnp.asarray(without), scales)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], with_text[1])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"guidance": -1.0}, "guidance = -1.0: expected 0"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"guidance": 1e30}, "guidance = 1e\\+30: expected 0 .* to 1000000"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.1}, "top_p = 1.1"),
    ],
    ids=str,
)
def test_meaningless_settings_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        SamplingConfig(**setting)
