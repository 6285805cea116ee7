"""CMMD against explicit sums."""

import math

import numpy as np
import pytest

from cogview_jax.evaluation.metrics import cmmd as module
from cogview_jax.evaluation.metrics.cmmd import cmmd
from cogview_jax.runtime.errors import InputError


def explicit(x, y):
    def mean(a, b):
        pairs = [math.exp(-float(np.sum((p - q) ** 2)) / 200) for p in a for q in b]
        return math.fsum(pairs) / len(pairs)

    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_explicit_sums_and_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 6)), 3 * rng.standard_normal((7, 6)) + 1
    found = cmmd(x, y)
    assert found.value == pytest.approx(explicit(x, y), rel=1e-9)
    assert found.n == (9, 7)
    monkeypatch.setattr(module, "CHUNK", 4)
    assert cmmd(x, y).value == pytest.approx(found.value, rel=1e-9)


def test_equal_sets_and_growing_damage():
    rng = np.random.default_rng(1)
    x, noise = rng.standard_normal((50, 6)) + 1, rng.standard_normal((50, 6))
    values = [cmmd(x, x + s * noise).value for s in (0, 1, 2, 4)]
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values == sorted(set(values))


def test_wrong_embeddings_are_refused():
    with pytest.raises(InputError, match="different dimensions: 3 and 2"):
        cmmd(np.ones((4, 3)), np.ones((4, 2)))
    with pytest.raises(InputError, match="embeddings of the other: row 0 is zero"):
        cmmd(np.ones((4, 3)), np.zeros((4, 3)))
