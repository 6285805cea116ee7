"""The measurement of precision policies, with a model of one layer."""

import dataclasses

import numpy as np
import pytest

from bench import precision
from cogview_jax.runtime.precision import POLICIES


@pytest.fixture(autouse=True)
def small(monkeypatch):
    model = dataclasses.replace(precision.MODEL, layers=1, width=32, heads=2, unroll=1)
    monkeypatch.setattr(precision, "MODEL", model)
    monkeypatch.setattr(precision, "ROWS", 2)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_a_step_of_every_kind_of_policy_runs(name):
    assert precision.step_seconds(POLICIES[name]) > 0


def test_logits_of_a_policy_are_near_those_of_float32():
    exact, rounded = (precision.random_logits(POLICIES[name]) for name in ("float32", "bfloat16"))
    error = np.abs(rounded - exact).max() / exact.std()
    assert 0 < error < 0.1
