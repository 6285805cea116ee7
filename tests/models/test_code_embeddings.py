"""Embeddings of codes that start from the codec's vectors, against what such a projection keeps."""

import numpy as np
import pytest

from cogview_jax.models.code_embeddings import code_embeddings


@pytest.fixture
def vectors():
    """Of unequal directions, and far from the origin, as those of a codec are."""
    rng = np.random.default_rng(0)
    return 7 + rng.standard_normal((40, 6)) * [9, 5, 3, 1, 0.5, 0.1]


def distances(rows):
    """Between all pairs of rows, by their mean."""
    between = np.linalg.norm(rows[:, None].astype(float) - rows[None], axis=-1)
    return between[np.triu_indices(len(rows), 1)] / between[np.triu_indices(len(rows), 1)].mean()


def test_codes_are_as_far_from_each_other_as_their_vectors(vectors):
    """With the width the ratios come nearer: their spread is at most sqrt(2 / width)."""
    before = distances(vectors)
    for width in (100, 10_000):
        after = distances(code_embeddings(vectors, width, 0.02, 0))
        ratios = after / before
        assert 0 < ratios.std() < (2 / width) ** 0.5


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


def test_a_codec_of_more_numbers_than_the_transformer_is_wide_fits():
    rows = code_embeddings(np.random.default_rng(0).standard_normal((8, 32)), 4, 0.02, 0)
    assert rows.shape == (8, 4)
    assert np.isfinite(rows).all()


def test_vectors_without_a_difference_give_none():
    np.testing.assert_array_equal(code_embeddings(np.ones((3, 2)), 4, 0.02, 0), np.zeros((3, 4)))
