"""LayerNorm equals its plain form, and precision relaxation keeps it from overflowing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.models.layernorm import LayerNorm, standardise
from reference import float64, layer_norm

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((5, 32)).astype(np.float32)
PARAMS = {
    "scale": GENERATOR.standard_normal(32).astype(np.float32),
    "bias": GENERATOR.standard_normal(32).astype(np.float32),
}


def apply(x, **settings):
    return LayerNorm(**settings).apply({"params": PARAMS}, x)


@pytest.mark.parametrize("relax", ["row", "none"])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_equals_the_plain_form(relax, factor):
    expected = layer_norm(float64(X * factor), PARAMS, 1e-5, relax == "row")
    np.testing.assert_allclose(apply(X * factor, relax=relax), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("power", [-100, 9, 100])
def test_relaxed_norm_does_not_see_the_scale_of_a_row(power):
    """The factors are powers of two, which cause no rounding; 2^100 squared overflows float32."""
    factors = np.array([[2.0**power], [1], [1], [2.0**power], [1]], np.float32)
    np.testing.assert_array_equal(apply(X * factors), apply(X))
    assert np.abs(apply(X * factors, relax="none") - apply(X))[[0, 3]].max() > 1e-6


def test_relaxed_norm_is_plain_norm_of_rows_whose_maximum_is_one():
    unit = X / np.abs(X).max(axis=1, keepdims=True)
    huge = unit * np.float32(2.0**90)
    np.testing.assert_array_equal(apply(huge), apply(unit, relax="none"))


def test_gradient_is_that_of_plain_norm_with_the_scaled_epsilon():
    upstream = GENERATOR.standard_normal(32)
    for row in X:
        largest = float(np.abs(row).max())
        plain = {"relax": "none", "epsilon": 1e-5 * largest**2}
        ours, expected = (
            jax.grad(lambda x, settings=settings: jnp.sum(apply(x, **settings) * upstream))(row)
            for settings in ({}, plain)
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("relax", ["row", "none"])
def test_an_outlier_token_changes_no_other_token(relax):
    outlier = X.copy()
    outlier[2] *= 1e5
    others = [0, 1, 3, 4]
    before, after = apply(X, relax=relax), apply(outlier, relax=relax)
    np.testing.assert_array_equal(before[np.array(others)], after[np.array(others)])


def test_zeros_give_the_bias_and_a_finite_gradient():
    zeros = np.zeros((1, 32), np.float32)
    np.testing.assert_array_equal(apply(zeros)[0], PARAMS["bias"])
    assert np.isfinite(jax.grad(lambda x: apply(x).sum())(zeros)).all()


def test_half_precision_rows_near_overflow_are_normalised():
    large = jnp.asarray(X / np.abs(X).max() * 65000, jnp.float16)
    assert jnp.isinf(large * large).any()
    result = apply(large, dtype=jnp.float16)
    assert result.dtype == jnp.float16
    expected = layer_norm(float64(large), PARAMS, 1e-5, True)
    np.testing.assert_allclose(result, expected, rtol=5e-4, atol=1e-6)


def test_gradient_is_that_of_the_steps_it_is_made_of():
    """In float64 it equals the gradient of automatic differentiation through each step."""
    with jax.enable_x64(True):
        x = np.asarray(GENERATOR.standard_normal((3, 16)), np.float64)
        upstream = GENERATOR.standard_normal((3, 16))

        def steps(x):
            centred = x - x.mean(-1, keepdims=True)
            variance = (centred**2).mean(-1, keepdims=True)
            return jnp.sum(centred / jnp.sqrt(variance + 1e-3) * upstream)

        ours = jax.grad(lambda x: jnp.sum(standardise(x, 1e-3) * upstream))(x)
        np.testing.assert_allclose(ours, jax.grad(steps)(x), rtol=1e-11, atol=1e-13)


def test_half_precision_gradients_of_rows_that_hardly_vary_are_right():
    """The variance is about 1e-5, so 1 / variance^(3/2) is 3e7, which overflows float16."""
    x = (1 + 0.004 * GENERATOR.standard_normal((4, 32))).astype(np.float16)
    upstream = GENERATOR.standard_normal((4, 32)).astype(np.float16)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(standardise(x, 1e-5) * upstream).astype(jnp.float32))(x)

    ours = np.asarray(gradient(x), np.float32)
    expected = gradient(x.astype(np.float32))
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, expected, atol=0.03 * np.abs(expected).max())
