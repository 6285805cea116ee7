"""Intervals against scipy's bootstrap, a loop that draws one by one, and a known truth."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from cogview_jax.evaluation.metrics.crossed_bootstrap import crossed_interval, share_interval


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


def votes(chosen, systems=3):
    """Of each rater and caption the number of a system, or -1."""
    chosen = np.asarray(chosen)
    return np.where(chosen[..., None] < 0, np.nan, chosen[..., None] == np.arange(systems))


def wilson(successes, n):
    return binomtest(successes, n).proportion_ci(method="wilson")


def test_of_one_rater_shares_have_scipys_wilson_intervals():
    low, high = share_interval(votes([[0] * 30 + [1] * 10]), draws=20_000)
    for system, successes in enumerate((30, 10, 0)):
        assert (low[system], high[system]) == pytest.approx(wilson(successes, 40), abs=0.01)


def test_raters_who_all_agree_are_worth_one():
    chosen = np.repeat([[0] * 30 + [1] * 10], 25, axis=0)
    low, high = share_interval(votes(chosen), draws=20_000)
    assert (low[0], high[0]) == pytest.approx(wilson(30, 40), abs=0.01)


def test_where_all_votes_are_for_one_system_the_interval_has_a_width():
    low, high = share_interval(votes([[2] * 50, [2] * 49 + [-1], [2] * 50]))
    assert (low[2], high[2]) == pytest.approx(wilson(3, 3))
    assert (low[0], high[0]) == pytest.approx(wilson(0, 3))
