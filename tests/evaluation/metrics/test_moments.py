"""Moments in batches and shards against those of all features at once."""

import numpy as np
import pytest

from cogview_jax.evaluation.metrics.features import CHUNK
from cogview_jax.evaluation.metrics.moments import Moments
from cogview_jax.runtime.errors import InputError


def features(n, d, seed=0):
    """Correlated features whose mean is large beside their spread."""
    rng = np.random.default_rng(seed)
    return 1e4 + rng.standard_normal((n, d)) @ rng.standard_normal((d, d))


def assert_are_of(moments, rows):
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    expected = np.cov(rows, rowvar=False)
    np.testing.assert_allclose(moments.covariance, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("sizes", [(300,), (1, 1, 298), (7, 100, 0, 193)])
def test_batches(sizes):
    rows, moments = features(300, 12), Moments.empty(12)
    for batch in np.split(rows, np.cumsum(sizes)[:-1]):
        moments = moments.add(batch)
    assert_are_of(moments, rows)
    np.testing.assert_array_equal(moments.covariance, moments.covariance.T)


def test_merged_shards_are_the_whole():
    rows = features(500, 9)
    shards = [Moments.of(rows[a:b]) for a, b in ((0, 1), (1, 200), (200, 500))]
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = Moments.empty(9)
        for i in order:
            merged = merged.merge(shards[i])
        assert_are_of(merged, rows)
    assert Moments.empty(9).merge(Moments.empty(9)).count == 0


def test_many_rows_are_added_in_chunks():
    rows = features(2 * CHUNK + 5, 3)
    assert_are_of(Moments.of(rows), rows)


def test_float32_features_have_moments_in_float64():
    rows = (1000 + np.random.default_rng(1).standard_normal((4000, 2))).astype(np.float32)
    moments = Moments.of(rows)
    assert moments.covariance.dtype == moments.mean.dtype == np.float64
    assert_are_of(moments, rows.astype(np.float64))


def test_wrong_features_are_refused():
    with pytest.raises(InputError, match="a covariance of 1 images: expected at least 2"):
        Moments.of(features(1, 3)).covariance  # noqa: B018
    with pytest.raises(InputError, match="features of 4 dimensions, expected 3"):
        Moments.empty(3).add(features(2, 4))
    with pytest.raises(InputError, match="features of 4 dimensions, expected 3"):
        Moments.empty(3).merge(Moments.empty(4))
    with pytest.raises(InputError, match=r"expected an array \[images, dimensions\], got \(3,\)"):
        Moments.of(np.ones(3))
    rows = features(CHUNK + 9, 3)
    rows[CHUNK + 4, 1] = np.nan
    with pytest.raises(InputError, match=rf"row {CHUNK + 4} \(of {CHUNK + 9}, from 0\) has NaN"):
        Moments.of(rows)
