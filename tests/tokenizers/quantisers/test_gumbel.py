"""Sampling through the Gumbel softmax against loops, and against CompVis' quantiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.tokenizers.quantisers.gumbel import distance_logits, relax

K, D, N = 12, 4, 50


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(scope="module")
def book():
    return np.random.default_rng(1).standard_normal((K, D)).astype(np.float32)


def gumbel(seed):
    return np.random.default_rng(seed).gumbel(size=(N, K)).astype(np.float32)


def test_relaxed_codes_equal_loops(book, vectors):
    noise, temperature = gumbel(2), 0.7
    result = relax(distance_logits(book, vectors), book, noise, temperature, hard=False)
    divergences = []
    for i, vector in enumerate(vectors.astype(np.float64)):
        logits = -np.array([np.sum((vector - code) ** 2) for code in book])
        shares = np.exp((logits + noise[i]) / temperature)
        mixed = shares / shares.sum() @ book
        np.testing.assert_allclose(result.quantised[i], mixed, atol=1e-5)
        assert result.ids[i] == np.argmax(logits + noise[i])
        likely = np.exp(logits) / np.exp(logits).sum()
        divergences.append(sum(p * np.log(p * K) for p in likely))
    assert result.ids.dtype == jnp.int32
    np.testing.assert_allclose(result.kl, divergences, rtol=1e-4, atol=1e-6)


def test_the_hard_form_is_a_code_forward_and_the_relaxation_backward(book, vectors):
    weights = np.arange(N * D, dtype=np.float32).reshape(N, D)

    def value(v, codes, hard):
        result = relax(distance_logits(codes, v), codes, gumbel(3), 0.9, hard=hard)
        return jnp.sum(result.quantised * weights), result

    gradients = {}
    for hard in (True, False):
        gradients[hard], result = jax.grad(value, has_aux=True)(vectors, book, hard)
        exact = np.allclose(result.quantised, book[result.ids], atol=1e-5)
        assert exact == hard
    assert np.abs(gradients[True]).max() > 1
    np.testing.assert_allclose(gradients[True], gradients[False], rtol=1e-4, atol=1e-3)


def test_without_noise_a_cold_relaxation_is_the_nearest_code(book, vectors):
    result = relax(
        distance_logits(book, vectors), book, np.zeros((N, K), np.float32), 1e-5, hard=False
    )
    ids = reference.nearest(book, vectors)
    np.testing.assert_array_equal(result.ids, ids)
    np.testing.assert_allclose(result.quantised, book[ids], atol=1e-3)
