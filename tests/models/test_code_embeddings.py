"""The initial embeddings of codes have the geometry of the codec's vectors."""

import numpy as np
import pytest

from cogview_jax.models.code_embeddings import code_embeddings


@pytest.fixture
def vectors():
    """Makes vectors with unequal directions and far from the origin, as those of a codec are."""
    rng = np.random.default_rng(0)
    return 7 + rng.standard_normal((40, 6)) * [9, 5, 3, 1, 0.5, 0.1]


def products(rows):
    """Returns the scalar products of all rows, divided by the sum of squares."""
    matrix = rows.astype(np.float64) @ rows.T
    return matrix / np.trace(matrix)


@pytest.mark.parametrize("width", [6, 64])
def test_directions_keep_the_root_of_their_spread(vectors, width):
    """The square of their Gram matrix is proportional to the Gram matrix of the centred vectors."""
    found = products(code_embeddings(vectors, width, 0.02, 0))
    squared = found @ found
    expected = products(vectors - vectors.mean(axis=0))
    np.testing.assert_allclose(squared / np.trace(squared), expected, atol=1e-7)


def test_vectors_of_more_numbers_than_the_width_are_cast_onto_a_plane():
    """The projection has orthogonal directions of equal length, one for each output dimension."""
    vectors = np.random.default_rng(0).standard_normal((300, 40))
    rows, whole = (code_embeddings(vectors, width, 1.0, 0) for width in (30, 40))
    cast, *_ = np.linalg.lstsq(whole.astype(float), rows.astype(float))
    np.testing.assert_allclose(whole @ cast, rows, atol=1e-5)
    np.testing.assert_allclose(cast.T @ cast, np.eye(30) * (cast[:, 0] @ cast[:, 0]), atol=1e-5)


def test_they_start_around_the_origin_with_the_deviation_asked_for(vectors):
    rows = code_embeddings(vectors, 64, 0.09, 0)
    assert rows.shape == (40, 64)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-7)
    np.testing.assert_allclose(np.mean(rows.astype(float) ** 2), 0.09**2, rtol=1e-6)


def test_where_and_in_what_unit_the_vectors_lie_changes_nothing(vectors):
    rows = code_embeddings(vectors, 64, 0.09, 0)
    np.testing.assert_allclose(code_embeddings(vectors * 4 - 3, 64, 0.09, 0), rows, atol=1e-6)


def test_another_seed_turns_them_another_way(vectors):
    rows = code_embeddings(vectors, 64, 0.09, 0)
    np.testing.assert_array_equal(code_embeddings(vectors, 64, 0.09, 0), rows)
    other = code_embeddings(vectors, 64, 0.09, 1)
    assert abs(np.corrcoef(rows.ravel(), other.ravel())[0, 1]) < 0.3


def test_vectors_without_a_difference_give_none():
    np.testing.assert_array_equal(code_embeddings(np.ones((3, 2)), 4, 0.02, 0), np.zeros((3, 4)))
