"""Muon against numpy's singular value decomposition, and against optax's own Muon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cogview_jax.training.muon import UPDATE_SIZE, orthogonalized, scale_by_muon

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def by_svd(matrix):
    """U p(S) V^T, where p is the polynomial of Muon applied five times to each singular value."""
    u, values, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = sum(c * values**n for c, n in zip(COEFFICIENTS, (1, 3, 5), strict=True))
    return (u * values) @ v


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_orthogonalized_is_the_polynomial_of_the_singular_values(shape, size):
    matrices = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    ours = orthogonalized(jnp.asarray(matrices * np.float32(size)))
    for matrix, got in zip(matrices, ours, strict=True):
        np.testing.assert_allclose(got, by_svd(matrix), atol=3e-6)


def test_a_matrix_of_zeros_stays_one():
    assert not jnp.any(orthogonalized(jnp.zeros((3, 5))))


def test_queries_keys_and_values_of_each_layer_are_matrices_of_their_own():
    """Of stacked kernels [L, D, 3, K], beside the update of every matrix alone."""
    rng = np.random.default_rng(1)
    gradients = [rng.standard_normal((2, 5, 3, 4)).astype(np.float32) for _ in range(3)]
    muon = scale_by_muon(0.8)
    state, momentum = muon.init({"blocks": jnp.zeros((2, 5, 3, 4))}), np.zeros((2, 5, 3, 4))
    for gradient in gradients:
        turned, state = muon.update({"blocks": jnp.asarray(gradient)}, state)
        updates = turned["blocks"]
        momentum = 0.8 * momentum + 0.2 * gradient
        ahead = 0.8 * momentum + 0.2 * gradient
        for layer in range(2):
            for part in range(3):
                expected = UPDATE_SIZE * np.sqrt(5) * by_svd(ahead[layer, :, part])
                np.testing.assert_allclose(updates[layer, :, part], expected, atol=3e-6)


def test_a_convolution_is_one_matrix_of_all_its_inputs():
    gradient = np.random.default_rng(3).standard_normal((3, 3, 2, 5)).astype(np.float32)
    muon = scale_by_muon(0.0)
    updates, _ = muon.update(jnp.asarray(gradient), muon.init(jnp.zeros((3, 3, 2, 5))))
    expected = UPDATE_SIZE * np.sqrt(18) * by_svd(gradient.reshape(18, 5))
    np.testing.assert_allclose(updates, expected.reshape(3, 3, 2, 5), atol=3e-6)


def test_updates_are_those_of_optax():
    """optax corrects both means of its Nesterov momentum for their start; later they agree."""
    rng = np.random.default_rng(2)
    params = jnp.zeros((8, 6))
    ours = scale_by_muon(0.5)
    theirs = optax.contrib.muon(-1.0, beta=0.5, consistent_rms=UPDATE_SIZE)
    state, other = ours.init(params), theirs.init(params)
    for _ in range(40):
        gradient = jnp.asarray(rng.standard_normal((8, 6)), jnp.float32)
        updates, state = ours.update(gradient, state)
        expected, other = theirs.update(gradient, other, params)
    np.testing.assert_allclose(updates, expected, atol=3e-6)
    assert jax.tree.leaves(state)[0].shape == params.shape
