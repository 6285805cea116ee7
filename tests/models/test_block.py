"""One layer equals its plain form for every switch, and dropout acts where it should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.models.attention import causal_mask
from cogview_jax.models.block import Block, gelu
from cogview_jax.models.config import TransformerConfig
from cogview_jax.runtime.sharding import unbox
from compilation import AS_USERS

CONFIG = TransformerConfig(layers=2, width=32, heads=4, dropout=0.5, init_std=0.3)
MASK = causal_mask(9)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((2, 9, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def params(x):
    shapes = jax.eval_shape(Block(CONFIG).init, jax.random.key(0), x, MASK)
    return reference.random_like(unbox(shapes["params"]), seed=1)


@functools.partial(jax.jit, static_argnums=0)
def apply(config, params, x, rngs):
    return Block(config).apply({"params": params}, x, MASK, rngs=rngs)[0]


def forward(params, x, key=None, **switches):
    rngs = {} if key is None else {"dropout": jax.random.key(key, impl="rbg")}
    return apply(dataclasses.replace(CONFIG, **switches), params, x, rngs)


@pytest.mark.parametrize("relax", [True, False])
@pytest.mark.parametrize("sandwich", [True, False])
def test_equals_the_plain_layer(params, x, sandwich, relax):
    """Small rows have a variance near epsilon, which tells the two forms of LayerNorm apart."""
    x = x * 0.01
    switches = {"sandwich_ln": sandwich, "pb_relax_norm": relax}
    config = dataclasses.replace(CONFIG, **switches)
    result = forward(params, x, **switches)
    for row, expected in zip(result, reference.float64(x), strict=True):
        expected = reference.block(expected, reference.float64(params), config)
        np.testing.assert_allclose(row, expected, atol=2e-5)


def test_switches_of_the_norms_matter(params, x):
    for switches in ({"sandwich_ln": False}, {"pb_relax_norm": False}):
        assert np.abs(forward(params, x * 0.01, **switches) - forward(params, x * 0.01)).max() > 0.1


def test_alpha_belongs_to_the_attention_switch(params, x):
    """With an alpha at which every product underflows, attention is uniform if PB-relax is on."""
    absurd = {"alpha": 1e38, "pb_relax_norm": False}
    off = forward(params, x, pb_relax_attention=False, **absurd)
    np.testing.assert_allclose(off, forward(params, x, pb_relax_norm=False), atol=2e-5)
    blind = jax.tree.map(np.copy, params)
    blind["attention"]["qkv"]["kernel"][:, 0] = blind["attention"]["qkv"]["bias"][0] = 0
    on = forward(params, x, pb_relax_attention=True, **absurd)
    np.testing.assert_allclose(on, forward(blind, x, pb_relax_norm=False), atol=2e-5)
    assert np.abs(on - off).max() > 0.1


def test_dropout_needs_a_key_and_follows_it(params, x):
    np.testing.assert_array_equal(forward(params, x), forward(params, x, dropout=0.0))
    one, again, two = (
        forward(params, x, key=1),
        forward(params, x, key=1),
        forward(params, x, key=2),
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 0.1
    assert np.abs(one - forward(params, x)).max() > 0.1


def test_dropout_acts_on_weights_and_on_both_branch_ends():
    """Branches are 1 everywhere, that of attention by its values, so the output shows the masks."""
    width, rows, rate = 32, 64, 0.25
    x = jnp.zeros((rows, 2, width))
    config = dataclasses.replace(CONFIG, dropout=rate, sandwich_ln=False)
    block, mask = Block(config), jnp.ones((2, 2), bool)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape),
        unbox(jax.eval_shape(block.init, jax.random.key(0), x, mask)["params"]),
    )

    def output(change, **changes):
        params = jax.tree.map(jnp.copy, zeros)
        change(params)
        result, _ = Block(dataclasses.replace(config, **changes)).apply(
            {"params": params}, x, mask, rngs={"dropout": jax.random.key(3, impl="rbg")}
        )
        return np.asarray(result)

    def set_branch(name, part):
        return lambda params: params[name][part].update(bias=jnp.ones(width))

    def set_values(params):
        params["attention"]["qkv"]["bias"] = jnp.zeros((3, width)).at[2].set(1)
        params["attention"]["out"]["kernel"] = jnp.eye(width)

    attention, mlp = output(set_branch("attention", "out")), output(set_branch("mlp", "down"))
    for branch in (attention, mlp):
        np.testing.assert_allclose(np.unique(branch), [0, 1 / (1 - rate)], rtol=1e-6)
        assert np.mean(branch == 0) == pytest.approx(rate, abs=0.03)
        assert len({row.tobytes() for row in branch}) == rows
    assert ((attention == 0) != (mlp == 0)).any()
    # There are two keys, and each weight is 1/2 or dropped: 0, 1 or 2 weights are kept.
    values = output(set_values)
    np.testing.assert_allclose(
        np.unique(values), np.arange(3) / 2 / (1 - rate) ** 2, rtol=1e-6, atol=1e-7
    )
    whole = output(set_values, attention_dropout=0.0)
    np.testing.assert_allclose(np.unique(whole), [0, 1 / (1 - rate)], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_gelu_and_its_gradient_are_those_of_the_formula(dtype):
    """This also holds for large x, whose x^3 overflows float16."""
    x = np.concatenate([np.linspace(-6, 6, 49), [-3000, -60, 60, 3000]]).astype(dtype)
    wide = x.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    expected = 0.5 * wide * (1 + np.tanh(inner))
    slope = 0.5 * (1 + np.tanh(inner)) + 0.5 * wide * (1 - np.tanh(inner) ** 2) * np.sqrt(
        2 / np.pi
    ) * (1 + 3 * 0.044715 * wide**2)
    tolerance = 3e-6 if dtype == jnp.float32 else 1e-3
    compiled = jax.jit(
        lambda x: jax.jvp(gelu, (x,), (jnp.ones_like(x),)), compiler_options=AS_USERS
    )
    y, change = compiled(x)
    assert y.dtype == change.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(change, slope, rtol=tolerance, atol=tolerance)
