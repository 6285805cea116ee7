"""Krippendorff's alpha against the worked examples of its author, and one by hand."""

import numpy as np
import pytest

from cogview_jax.evaluation.metrics.agreement import krippendorff_alpha

_ = np.nan
#: "Computing Krippendorff's Alpha-Reliability" (2011), section D: four observers, twelve units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_the_published_example(level, alpha):
    assert round(krippendorff_alpha(PUBLISHED, level), 3) == alpha


def test_by_hand():
    """Values 1 1 | 1 2 | 2 3: n_1 = 3, n_2 = 2, n_3 = 1.

    Nominal: D_o = 4 of 6 ordered pairs within units differ; D_e = (6*5 - 3*2 - 2*1 - 0) / 5 = 22/5
    of 6 in expectation; alpha = 1 - 4 / 4.4.
    Ordinal: differences are (3/2 + 2/2)^2 = 6.25 of 1 and 2, (2/2 + 1/2)^2 = 2.25 of 2 and 3, and
    (3/2 + 2 + 1/2)^2 = 16 of 1 and 3. D_o = 2 * 6.25 + 2 * 2.25 = 17; D_e = 2 * (6 * 6.25 +
    2 * 2.25 + 3 * 16) / 5 = 36; alpha = 1 - 17 / 36.
    """
    values = np.array([[1.0, 1, 2], [1, 2, 3]])
    assert krippendorff_alpha(values, "nominal") == pytest.approx(1 - 4 / 4.4)
    assert krippendorff_alpha(values, "ordinal") == pytest.approx(1 - 17 / 36)
    # A unit that one rater has rated says nothing of agreement.
    lonely = np.concatenate([values, [[5.0], [_]]], axis=1)
    assert krippendorff_alpha(lonely, "ordinal") == pytest.approx(1 - 17 / 36)


def test_only_the_order_of_ordinal_values_counts():
    stretched = np.array([_, 1, 10, 11, 1000, 1001])[np.nan_to_num(PUBLISHED).astype(int)]
    ordinal = krippendorff_alpha(PUBLISHED, "ordinal")
    assert krippendorff_alpha(stretched, "ordinal") == pytest.approx(ordinal)
    assert krippendorff_alpha(PUBLISHED[::-1], "ordinal") == pytest.approx(ordinal)


@pytest.mark.parametrize("values", [[[_, _]], [[1.0, 2]], [[3.0, 3], [3, 3]], [[1.0, _], [_, 2]]])
def test_it_is_none_where_it_is_not_defined(values):
    assert krippendorff_alpha(np.array(values), "ordinal") is None


def test_extremes():
    assert krippendorff_alpha(np.array([[1.0, 2, 3], [1, 2, 3]]), "ordinal") == 1
    assert krippendorff_alpha(np.array([[1.0, 5], [5, 1]]), "nominal") < 0
