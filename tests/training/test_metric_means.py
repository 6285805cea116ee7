"""What a log point reports of the steps since the one before."""

import math

from cogview_jax.training.metric_means import MetricMeans


def test_settings_are_the_last_ones_and_measurements_are_means():
    means = MetricMeans()
    for step, loss in enumerate([3.0, 1.0, 2.0]):
        means.add({"loss": loss, "lr": 0.1 * step, "loss_scale": 2.0**step})
    assert means.means() == {"loss": 2.0, "lr": 0.2, "loss_scale": 4.0}
    means.clear()
    means.add({"loss": 7.0})
    assert means.means() == {"loss": 7.0}


def test_what_has_no_value_is_left_out_and_not_counted():
    means = MetricMeans()
    means.add({"loss": 1.0, "text_loss": math.nan, "never": math.nan, "overflow": 0.0})
    means.add({"loss": math.inf, "text_loss": math.nan, "never": math.nan, "overflow": 1.0})
    means.add({"loss": 2.0, "text_loss": 4.0, "never": math.nan, "overflow": 0.0})
    found = means.means()
    assert math.isnan(found.pop("never"))
    assert found == {"loss": 1.5, "text_loss": 4.0, "overflow": 1 / 3}
