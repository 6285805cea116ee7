"""CLIPScore of embeddings whose angles are known."""

import numpy as np
import pytest

from cogview_jax.evaluation.metrics.clip_score import clip_score
from cogview_jax.runtime.errors import InputError


def at_angles(*degrees, length=1.0):
    """Vectors of a plane."""
    radians = np.deg2rad(degrees)
    return length * np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_angles():
    images = at_angles(10, 20, 200, 40, length=3.0).astype(np.float32)
    found = clip_score(images, at_angles(70, 20, 20, 130, length=0.2))  # 60, 0, 180, 90 apart
    scores, percent = np.array([1.25, 2.5, 0, 0]), np.array([50, 100, -100, 0])
    assert found.mean == pytest.approx(scores.mean(), abs=1e-6)
    assert found.cosine_percent == pytest.approx(percent.mean(), abs=1e-4)
    for error, values in (
        (found.standard_error, scores),
        (found.cosine_percent_standard_error, percent),
    ):
        variance = sum((v - sum(values) / 4) ** 2 for v in values) / 3
        assert error == pytest.approx((variance / 4) ** 0.5, rel=1e-5)
    assert found.n == 4


def test_a_single_pair_has_no_error():
    found = clip_score(at_angles(0), at_angles(60))
    assert (found.mean, found.standard_error) == (pytest.approx(1.25), None)
    assert found.cosine_percent_standard_error is None


def test_wrong_embeddings_are_refused():
    with pytest.raises(InputError, match=r"images \(2, 2\) and of captions \(1, 2\): expected pai"):
        clip_score(at_angles(0, 1), at_angles(0))
    with pytest.raises(InputError, match="embeddings of captions: row 1 is zero"):
        clip_score(at_angles(0, 1), np.array([[1.0, 0.0], [0.0, 0.0]]))
