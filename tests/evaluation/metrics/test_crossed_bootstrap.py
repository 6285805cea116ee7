"""Intervals against scipy's bootstrap, a loop that draws one by one, and a known truth."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from cogview_jax.evaluation.metrics.crossed_bootstrap import crossed_interval


def test_of_one_rater_it_is_scipys_bootstrap_over_captions():
    scores = np.random.default_rng(1).integers(1, 6, 40).astype(float)
    low, high = crossed_interval(scores[None], draws=20_000)
    theirs = bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    # Quantiles of 20,000 draws of a mean with standard error 0.22 are known to about 0.01.
    assert (low, high) == pytest.approx(theirs, abs=0.03)
    turned = crossed_interval(scores[:, None], draws=20_000)
    assert turned == pytest.approx(theirs, abs=0.03)


def test_it_is_what_drawing_one_by_one_gives():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(5, 7)) + rng.normal(size=(5, 1)) + 2 * rng.normal(size=(1, 7))
    values[rng.random(values.shape) < 0.2] = np.nan
    means = []
    for _ in range(10_000):
        rows, columns = rng.integers(5, size=5), rng.integers(7, size=7)
        means.append(np.nanmean(values[np.ix_(rows, columns)]))
    slow = np.quantile(means, [0.05, 0.95])
    assert crossed_interval(values, draws=10_000, level=0.9) == pytest.approx(slow, abs=0.08)


def test_it_covers_the_truth_where_a_bootstrap_of_single_ratings_does_not():
    """Raters and captions each have a deviation of 1, ratings one of 0.3: 20 of 20 of each."""
    rng = np.random.default_rng(4)
    raters, captions = rng.normal(size=(300, 20, 1)), rng.normal(size=(300, 1, 20))
    values = raters + captions + 0.3 * rng.normal(size=(300, 20, 20))
    crossed = [crossed_interval(each, draws=200) for each in values]
    covered = np.mean([low <= 0 <= high for low, high in crossed])
    single = [crossed_interval(each.reshape(1, -1), draws=200) for each in values[:50]]
    assert 0.88 <= covered <= 0.99
    assert np.mean([low <= 0 <= high for low, high in single]) < 0.6


def test_several_measures_share_their_draws_and_the_seed_decides():
    values = np.random.default_rng(5).random((4, 6, 3))
    together = np.array(crossed_interval(values, seed=7))
    assert together.shape == (2, 3)
    apart = np.stack([crossed_interval(values[..., i], seed=7) for i in range(3)], axis=1)
    np.testing.assert_allclose(together, apart)
    assert (np.array(crossed_interval(values, seed=8)) != together).any()


def test_a_draw_without_a_rating_does_not_count():
    values = np.full((2, 2), np.nan)
    values[0, 0], values[1, 1] = 1.0, 3.0
    low, high = crossed_interval(values)
    assert (low, high) == (1.0, 3.0)
