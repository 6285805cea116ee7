"""Precision and recall of points that are drawn by hand, and against loops."""

import numpy as np
import pytest

from cogview_jax.evaluation.metrics import precision_recall as module
from cogview_jax.evaluation.metrics.precision_recall import precision_recall
from cogview_jax.runtime.errors import InputError


def test_points_on_a_line():
    """With k = 1 the balls of 0, 1, 3 have the radii 1, 1, 2; those of 2, 9 both have 7."""
    real, generated = np.array([[0.0], [1], [3]]), np.array([[2.0], [9]])
    found = precision_recall(real, generated, neighbours=1)
    assert (found.precision, found.recall, found.n) == (0.5, 1.0, (3, 2))
    assert found.precision_standard_error == pytest.approx((0.25 / 2) ** 0.5)
    assert found.recall_standard_error == 0


def loops(manifold, others, k):
    inside = 0
    for point in others:
        for i, centre in enumerate(manifold):
            to = sorted(np.linalg.norm(manifold - centre, axis=1)[np.arange(len(manifold)) != i])
            if np.linalg.norm(point - centre) <= to[k - 1]:
                inside += 1
                break
    return inside / len(others)


def test_loops_and_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    real, generated = rng.standard_normal((70, 3)), 1.2 * rng.standard_normal((50, 3)) + 0.5
    found = precision_recall(real, generated)
    assert found.precision == pytest.approx(loops(real, generated, 3))
    assert found.recall == pytest.approx(loops(generated, real, 3))
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1
    monkeypatch.setattr(module, "ROWS", 16)
    assert precision_recall(real, generated) == found


def test_copies_are_real_and_cover_all():
    real = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    found = precision_recall(real, real)
    assert (found.precision, found.recall) == (1, 1)
    far = precision_recall(real, real + 100)
    assert (far.precision, far.recall) == (0, 0)


def test_wrong_input_is_refused():
    x = np.zeros((5, 2))
    with pytest.raises(InputError, match="real images: 3 images, expected at least 4"):
        precision_recall(x[:3], x)
    with pytest.raises(InputError, match="different numbers of dimensions: 2 and 1"):
        precision_recall(x, x[:, :1])
    with pytest.raises(InputError, match="0 neighbours: expected at least 1"):
        precision_recall(x, x, neighbours=0)
