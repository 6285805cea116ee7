"""KID against torch-fidelity, clean-fid and explicit sums."""

import json

import numpy as np
import pytest

from cogview_jax.evaluation.metrics.kernel_distance import kernel_distance, squared_mmd
from cogview_jax.runtime.errors import InputError


def test_packages(oracles):
    arrays = np.load(oracles("kid_is/arrays.npz"))
    cases = json.loads(oracles("kid_is/values.json").read_text())["kid"]
    f1, f2, compared = arrays["f1"], arrays["f2"], 0
    for name, expected in cases.items():
        words = name.split()
        if "mmd2" in words:
            continue
        settings = {"subset_size": int(words[2]), "subsets": int(words[4])}
        if words[0] == "torch_fidelity":
            found = kernel_distance(f1, f2, **settings)
            mean = expected["kernel_inception_distance_mean"]
            assert found.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-5)
        else:  # clean-fid samples from the second set first
            found, mean = kernel_distance(f2, f1, **settings, seed=0), expected
        assert found.mean == pytest.approx(mean, rel=1e-5), name
        assert found.note is None
        compared += 1
    assert compared > 3
    (name,) = (name for name in cases if "mmd2 unbiased" in name)
    rows = int(name.split(" first ")[1].split()[0])
    mmd = squared_mmd(f1[:rows].astype(np.float64), f2[:rows].astype(np.float64))
    assert mmd == pytest.approx(cases[name], rel=1e-9)


def test_explicit_sums():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((5, 4)) + 1

    def kernel(a, b):
        return (sum(a * b) / 4 + 1) ** 3

    def within(rows):
        pairs = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(a, b) for a in x for b in y]
    expected = within(x) + within(y) - 2 * sum(between) / len(between)
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-12)


def test_sets_smaller_than_a_subset():
    rng = np.random.default_rng(1)
    x, y = rng.random((30, 3)), rng.random((12, 3))
    found = kernel_distance(x, y, subsets=5, subset_size=50)
    assert (found.subset_size, found.requested_size, found.n) == (12, 50, (30, 12))
    assert "subsets of 12 images, not 50" in found.note
    assert found.mean == kernel_distance(x, y, subsets=5, subset_size=12).mean


def test_it_is_unbiased_and_grows_with_damage():
    """For two samples of one distribution it is zero on average, also for few images."""
    rng = np.random.default_rng(2)
    values = [squared_mmd(rng.random((8, 5)), rng.random((8, 5))) for _ in range(2000)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0
    x, noise = rng.random((200, 5)), rng.standard_normal((200, 5))
    damaged = [kernel_distance(x, x + s * noise, subset_size=100).mean for s in (0, 1, 2, 3)]
    assert damaged == sorted(set(damaged))


def test_wrong_input_is_refused():
    x = np.random.default_rng(3).random((9, 3))
    with pytest.raises(InputError, match="second set of KID: 1 images, expected at least 2"):
        kernel_distance(x, x[:1])
    with pytest.raises(InputError, match="different numbers of dimensions: 3 and 2"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(InputError, match="KID with 1 images in a subset: expected at least 2"):
        kernel_distance(x, x, subset_size=1)
    with pytest.raises(InputError, match="KID with 0 subsets: expected at least 1"):
        kernel_distance(x, x, subsets=0)
