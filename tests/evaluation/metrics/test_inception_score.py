"""The inception score against torch-fidelity, explicit sums, and the release's way to divide."""

import json

import numpy as np
import pytest

from cogview_jax.evaluation.metrics.inception_score import inception_score
from cogview_jax.runtime.errors import InputError


def test_torch_fidelity(oracles):
    logits = np.load(oracles("kid_is/arrays.npz"))["logits"]
    cases = json.loads(oracles("kid_is/values.json").read_text())["inception_score"]
    cases.pop("note")
    assert len(cases) > 2
    for name, expected in cases.items():
        _, splits, _, shuffle, *_ = name.split()
        found = inception_score(logits, int(splits), shuffle=shuffle == "True")
        assert found.mean == pytest.approx(expected["inception_score_mean"], abs=1e-9)
        assert found.std == pytest.approx(expected["inception_score_std"], abs=1e-9)
        assert (found.n, found.splits) == (len(logits), int(splits))


def explicit(logits):
    """exp E KL(p(y|x) || p(y)) as a double loop."""
    p = [[np.exp(v) / sum(np.exp(u) for u in row) for v in row] for row in logits.tolist()]
    marginal = [sum(row[y] for row in p) / len(p) for y in range(len(p[0]))]
    kl = [sum(a * np.log(a / b) for a, b in zip(row, marginal, strict=True)) for row in p]
    return np.exp(sum(kl) / len(kl))


def test_equal_splits_leave_the_rest_out():
    logits = np.random.default_rng(0).standard_normal((23, 5)) * 2
    found = inception_score(logits, 4, shuffle=False, equal_splits=True)
    scores = [explicit(logits[5 * i : 5 * i + 5]) for i in range(4)]
    assert found.mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert found.std == pytest.approx(np.std(scores), rel=1e-12)
    assert (found.n, found.splits) == (20, 4)


def test_certain_classifiers_find_as_many_classes_as_there_are():
    """Probabilities that are zero in float64 count as zero."""
    logits = np.zeros((60, 7))
    logits[np.arange(60), np.arange(60) % 6] = 2000.0
    assert inception_score(logits, 1).mean == pytest.approx(6)
    assert inception_score(np.ones((60, 7)), 1).mean == pytest.approx(1)


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="logits of the inception score: 9 images, expected at le"):
        inception_score(np.zeros((9, 5)))
    with pytest.raises(InputError, match="0 splits: expected at least 1"):
        inception_score(np.zeros((9, 5)), 0)
    with pytest.raises(InputError, match=r"row 2 .* has NaN or infinity"):
        inception_score(np.where(np.arange(9)[:, None] == 2, np.inf, np.zeros((9, 5))), 3)
