"""Finite scalar quantisation: grids drawn by hand, and every code there and back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig
from cogview_jax.tokenizers.quantisers.fsq import FSQ
from cogview_jax.tokenizers.quantisers.quantiser import CodebookTraining

QUANTISER = FSQ(levels=(4, 3))
STATE = QUANTISER.init(jax.random.key(0), 12, 2)[1]


def test_the_points_of_a_grid_by_hand():
    """Four levels at -1, -.5, 0, .5 and three at -1, 0, 1; the first number is the fastest."""
    points = QUANTISER.vectors({}, STATE, np.arange(12))
    expected = [(x, y) for y, x in itertools.product((-1, 0, 1), (-1, -0.5, 0, 0.5))]
    np.testing.assert_array_equal(points, np.array(expected, np.float32))


def test_a_vector_is_the_level_nearest_to_its_bound():
    vectors = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32) * 2
    ids = np.asarray(QUANTISER.encode({}, STATE, vectors))
    assert set(ids) == set(range(12))
    for vector, code in zip(vectors, ids, strict=True):
        digits = []
        for value, levels in zip(vector, (4, 3), strict=True):
            half = (levels - 1) * 1.001 / 2
            offset = 0.5 if levels == 4 else 0
            bounded = np.tanh(value + np.arctanh(offset / half)) * half - offset
            digits.append(int(np.argmin(np.abs(np.arange(levels) - levels // 2 - bounded))))
        assert code == digits[0] + 4 * digits[1]


def test_zero_and_far_vectors_are_the_middle_and_the_ends():
    ids = QUANTISER.encode({}, STATE, np.array([[0, 0], [-99, -99], [99, 99]], np.float32))
    assert ids.tolist() == [2 + 4, 0, 3 + 8]


def test_training_reads_points_and_has_the_gradient_of_the_bound():
    vectors = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 2, 2)), jnp.float32)

    def found(v):
        return QUANTISER.quantise(
            CodebookTraining(), {}, STATE, v, jnp.arange(3), 3, jax.random.key(0)
        )

    quantised = found(vectors)
    points = QUANTISER.vectors({}, STATE, QUANTISER.encode({}, STATE, vectors))
    np.testing.assert_allclose(quantised.vectors, points, atol=1e-6)
    assert not quantised.loss.any()
    ours = jax.grad(lambda v: jnp.sum(found(v).vectors))(vectors)
    expected = jax.grad(lambda v: jnp.sum(QUANTISER.bounded(v) / jnp.array([2.0, 1.0])))(vectors)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert (ours > 0).all()
    _, after, metrics = QUANTISER.finish(CodebookTraining(), {}, STATE, quantised.aux)
    assert float(after.counts.sum()) == pytest.approx(0.01 * 12)
    assert metrics["perplexity"] > 1


def test_a_codec_has_as_many_codes_as_the_grid():
    VQVAEConfig(codebook=12, code_width=2, quantiser=QUANTISER)
    with pytest.raises(InputError, match="have 12 codes of 2 numbers, but codebook is 13"):
        VQVAEConfig(codebook=13, code_width=2, quantiser=QUANTISER)
