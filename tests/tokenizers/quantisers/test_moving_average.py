"""The codebook against loops and against the official quantiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rounding

import reference
from cogview_jax.tokenizers.quantisers.gumbel import distance_logits, relax
from cogview_jax.tokenizers.quantisers.moving_average import (
    Codebook,
    assign,
    initial_codebook,
    revive,
    update,
)
from cogview_jax.tokenizers.quantisers.quantiser import nearest, straight_through
from cogview_jax.tokenizers.quantisers.revival import Candidates

K, D, N = 12, 4, 50


def arrays(tree):
    """The numbers of a tree as arrays of jax."""
    return jax.tree.map(jnp.asarray, tree)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(scope="module")
def codebook():
    generator = np.random.default_rng(1)
    codes = generator.standard_normal((K, D)).astype(np.float32)
    counts = generator.uniform(0.5, 5, K).astype(np.float32)
    return arrays(Codebook(codes, counts, codes * counts[:, None], np.float32(2.0)))


def after(codebook, vectors, decay=0.9, epsilon=1e-5):
    ids = nearest(codebook.codes, vectors)
    return update(codebook, assign(codebook.codes, vectors, ids), decay, epsilon)


def test_nearest_equals_loops_in_any_shape(codebook, vectors):
    expected = reference.nearest(codebook.codes, vectors)
    ids = nearest(codebook.codes, vectors)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, expected)
    grid = vectors.reshape(2, 5, 5, D)
    np.testing.assert_array_equal(nearest(codebook.codes, grid), expected.reshape(2, 5, 5))


def test_codes_do_not_follow_the_precision_of_the_device():
    """Of 16 dimensions, where products of bfloat16 choose another code once in 300 times."""
    generator = np.random.default_rng(3)
    codes, vectors = (generator.standard_normal((n, 16)).astype(np.float32) for n in (64, 3000))
    noise = generator.gumbel(size=(3000, 64)).astype(np.float32)
    ids = nearest(codes, vectors)
    distances = np.sum((vectors[:, None].astype(np.float64) - codes) ** 2, axis=-1)
    np.testing.assert_array_equal(ids, np.argmin(distances, axis=-1))
    np.testing.assert_array_equal(rounding.on_tpu(nearest)(codes, vectors), ids)

    def coarse(codes, vectors):
        return jnp.argmin(jnp.sum(codes**2, axis=1) - 2 * vectors @ codes.T, axis=-1)

    assert 3 < np.sum(rounding.on_tpu(coarse)(codes, vectors) != ids) < 30

    def both(codes, vectors, noise):
        logits = distance_logits(codes, vectors)
        return relax(logits, codes, noise, 0.9, hard=True), assign(codes, vectors, ids)

    given = codes, vectors, noise
    exact, found = both(*given), rounding.on_tpu(both)(*given)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(exact[0].ids, found[0].ids)


def test_the_search_is_in_float32_whatever_it_is_given(codebook, vectors):
    given = [jnp.asarray(x, jnp.bfloat16) for x in (codebook.codes, vectors)]
    expected = reference.nearest(*(np.asarray(x, np.float32) for x in given))
    np.testing.assert_array_equal(nearest(*given), expected)


def test_the_first_of_equal_codes_wins():
    codes = jnp.array([[2.0, 0], [1, 0], [1, 0], [0, 1]])
    assert nearest(codes, jnp.array([[1.1, 0], [0, 3]])).tolist() == [1, 3]


def test_update_equals_loops(codebook, vectors):
    result = after(codebook, vectors, epsilon=0.1)
    ids = reference.nearest(codebook.codes, vectors)
    codes, counts, sums = reference.moving_average_update(
        codebook.counts, codebook.sums, vectors, ids, 0.9, 0.1
    )
    np.testing.assert_allclose(result.codes, codes, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(result.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(result.sums, sums, rtol=1e-5, atol=1e-6)


def test_assignments_of_parts_add_up_to_those_of_the_batch(codebook, vectors):
    """So that accumulated and sharded batches move the codebook as whole ones do."""
    ids = nearest(codebook.codes, vectors)
    whole, *parts = (
        assign(codebook.codes, vectors[part], ids[part])
        for part in (slice(None), slice(0, 20), slice(20, N))
    )
    total = jax.tree.map(jnp.add, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, total)
    assert whole.hits.sum() == N


def test_error_is_the_moving_mean_of_squared_distances(codebook, vectors):
    ids = reference.nearest(codebook.codes, vectors)
    codes = np.asarray(codebook.codes)
    mean = np.mean(np.sum((vectors - codes[ids]) ** 2, axis=1))
    assert float(after(codebook, vectors).error) == pytest.approx(0.9 * 2 + 0.1 * mean, rel=1e-5)
    fresh = codebook._replace(error=jnp.float32(jnp.inf))
    assert float(after(fresh, vectors).error) == pytest.approx(mean, rel=1e-5)


def test_unused_codes_stay_finite():
    fresh = initial_codebook(jax.random.key(0), K, D)
    vectors = jnp.zeros((3, D)).at[:, 0].set(1)
    for _ in range(3):
        fresh = after(fresh, vectors)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fresh))


@pytest.mark.parametrize("start", ["warm", "cold"])
def test_three_passes_equal_the_official_quantiser(fixtures, start):
    """Its codes are columns. The value of a pass is that of the codebook from before it."""
    table = np.load(fixtures / "vqvae_ema.npz")

    def state(i):
        codes, sums = table[f"{start}_embed_{i}"].T, table[f"{start}_embed_avg_{i}"].T
        return arrays(Codebook(codes, table[f"{start}_cluster_size_{i}"], sums, np.float32(np.inf)))

    codebook = state(0)
    for i in (1, 2, 3):
        x = table[f"x_{i}"]
        ids = nearest(codebook.codes, x)
        np.testing.assert_array_equal(ids, table[f"{start}_ids_{i}"])
        codes = jnp.asarray(codebook.codes)

        def value(x, codes=codes, ids=ids):
            quantised = straight_through(x, codes[ids])
            commitment = jnp.mean((codes[ids] - x) ** 2)
            return jnp.sum(quantised**2) + commitment, (quantised, commitment)

        gradient, (quantised, commitment) = jax.grad(value, has_aux=True)(x)
        scale = np.abs(table[f"{start}_quant_{i}"]).max()
        np.testing.assert_allclose(quantised, table[f"{start}_quant_{i}"], atol=1e-5 * scale)
        assert float(commitment) == pytest.approx(float(table[f"{start}_diff_{i}"]), rel=1e-5)
        np.testing.assert_allclose(gradient, table[f"{start}_dx_{i}"], atol=1e-5 * scale)
        codebook = after(codebook, x.reshape(-1, x.shape[-1]), decay=0.99)
        for ours, official in zip(codebook[:3], state(i)[:3], strict=True):
            scale = np.abs(official).max()
            np.testing.assert_allclose(ours, official, rtol=1e-4, atol=1e-5 * scale)


def test_straight_through_is_the_code_forward_and_the_vector_backward(codebook, vectors):
    quantised = codebook.codes[reference.nearest(codebook.codes, vectors)]
    weights = np.arange(N * D, dtype=np.float32).reshape(N, D)

    def value(v, q):
        return jnp.sum(straight_through(v, q) * weights)

    np.testing.assert_allclose(straight_through(vectors, quantised), quantised, atol=1e-6)
    through, blocked = jax.grad(value, (0, 1))(vectors, quantised)
    np.testing.assert_array_equal(through, weights)
    assert not blocked.any()


def test_revival_moves_the_dead_codes_that_are_worth_it_and_no_other():
    """A fair share is 40 / 4 = 10; below a tenth of it a code is dead."""
    codes = np.zeros((4, 2), np.float32)
    counts = np.array([0.0, 0.99, 1.0, 0.5], np.float32)
    before = arrays(Codebook(codes, counts, codes + 7, np.float32(3.0)))
    candidates = np.arange(8, dtype=np.float32).reshape(4, 2) + 1
    worthwhile = np.array([1, 1, 1, 0], np.float32)
    result, moved = revive(before, arrays(Candidates(candidates, worthwhile)), 40, 0.1)
    assert int(moved) == 2
    assert result.codes.tolist() == [[1, 2], [3, 4], [0, 0], [0, 0]]
    assert result.counts.tolist() == [2, 2, 1, 0.5]
    assert result.sums.tolist() == [[2, 4], [6, 8], [7, 7], [7, 7]]
    assert result.error == 3


def test_a_fresh_codebook_is_xavier_uniform_with_the_gain_of_tanh():
    fresh = initial_codebook(jax.random.key(0), 600, 50)
    bound = 5 / 3 * (6 / 650) ** 0.5
    assert np.abs(fresh.codes).max() == pytest.approx(bound, rel=1e-3)
    assert np.std(fresh.codes) == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not fresh.counts.any()
    assert not fresh.sums.any()
    assert np.isinf(fresh.error)
