"""The Fréchet distance against three packages, scipy's matrix square root and exact values."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import linalg

from cogview_jax.evaluation.metrics.frechet import bias_note, fid_infinity, frechet_distance
from cogview_jax.evaluation.metrics.moments import Moments
from cogview_jax.runtime.errors import InputError


@dataclass
class Given:
    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None


def test_packages(oracles):
    arrays = np.load(oracles("frechet/moments.npz"))
    cases = json.loads(oracles("frechet/distances.json").read_text())["cases"]
    assert len(cases) > 5
    for name, packages in cases.items():
        a, b = (Given(arrays[f"{name}:mu{i}"], arrays[f"{name}:sigma{i}"]) for i in (1, 2))
        spectra = [np.linalg.eigvalsh(side.covariance) for side in (a, b)]
        singular = any(values[0] <= 1e-9 * abs(values[-1]) for values in spectra)
        for expected in (packages[p] for p in ("pytorch_fid", "clean_fid", "torch_fidelity")):
            tolerance = {"abs": 1e-5} if singular else {"rel": 1e-6, "abs": 1e-12}
            for one, other in ((a, b), (b, a)):
                found = frechet_distance(one, other).value
                assert found == pytest.approx(expected, **tolerance), name


def test_equal_sides_have_a_distance_of_zero(oracles):
    arrays = np.load(oracles("frechet/moments.npz"))
    side = Given(arrays["equal_pair:mu1"], arrays["equal_pair:sigma1"])
    assert 0 <= frechet_distance(side, side).value < 1e-12


def test_moments_of_features(oracles):
    """Fewer features than dimensions."""
    arrays = np.load(oracles("frechet/moments.npz"))
    cases = json.loads(oracles("frechet/distances.json").read_text())["cases"]
    a, b = (arrays[f"few:{side}"] for side in "ab")
    found = frechet_distance(Moments.of(a), Moments.of(b))
    assert found.value == pytest.approx(cases["sample_covariances_of_few"]["pytorch_fid"], abs=1e-5)
    assert (found.n, found.dimensions) == ((len(a), len(b)), a.shape[1])
    assert found.note == bias_note(min(len(a), len(b)), a.shape[1]) is not None


def exact(a, b):
    """The distance by the singular values of the cross product of the centred features."""
    x, y = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (a, b))
    root = linalg.svdvals(x @ y.T).sum()
    means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return means + np.sum(x**2) + np.sum(y**2) - 2 * root


@pytest.mark.parametrize("sizes", [(40, 48), (40, 900), (700, 60), (20, 20)])
def test_far_fewer_images_than_dimensions(sizes):
    rng = np.random.default_rng(2)
    a, b = (scale * rng.random((n, 512)) for n, scale in zip(sizes, (1, 3), strict=True))
    expected = exact(a, b)
    for one, other in ((a, b), (b, a)):
        found = frechet_distance(Moments.of(one), Moments.of(other)).value
        assert found == pytest.approx(expected, abs=1e-5)


def test_covariances_of_subspaces_without_a_common_direction():
    rng = np.random.default_rng(3)
    rotation = linalg.qr(rng.standard_normal((200, 200)))[0]
    a, b = (np.zeros((150, 200)) for _ in range(2))
    a[:, :90], b[:, 90:] = rng.standard_normal((150, 90)), rng.standard_normal((150, 110))
    a, b = Moments.of(a @ rotation), Moments.of(b @ rotation)
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    expected = np.sum((a.mean - b.mean) ** 2) + traces
    assert frechet_distance(a, b).value == pytest.approx(expected, abs=1e-5)


def test_matrix_square_root():
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal((200, 30)) @ rng.standard_normal((30, 30)) for _ in range(2))
    a, b = Moments.of(a), Moments.of(b + 0.3)
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b).value == pytest.approx(expected, rel=1e-9)


def test_gaussians_on_a_line():
    """In one dimension the distance is (m1 - m2)^2 + (s1 - s2)^2; with s1 = 0 too."""
    for deviation in (2.0, 0.0):
        a = Given(np.array([1.0]), np.array([[deviation**2]]))
        b = Given(np.array([4.0]), np.array([[25.0]]))
        assert frechet_distance(a, b).value == pytest.approx(9 + (5 - deviation) ** 2)
        assert frechet_distance(b, a).value == pytest.approx(9 + (5 - deviation) ** 2)


def test_more_noise_is_a_larger_distance():
    rng = np.random.default_rng(5)
    clean, noise = rng.random((100, 20)), rng.standard_normal((100, 20))
    of = Moments.of(clean)
    distances = [frechet_distance(of, Moments.of(clean + s * noise)).value for s in (0, 1, 2, 3)]
    assert distances == sorted(set(distances))


def test_infinitely_many_images():
    """The reference is the features' true Gaussian: the distance of the distributions is 0."""
    d, n = 24, 4000
    features = np.random.default_rng(6).standard_normal((n, d))
    reference = Given(np.zeros(d), np.eye(d))
    found = fid_infinity(features, reference, points=12, least=200, seed=1)
    of_all = frechet_distance(Moments.of(features), reference).value
    assert abs(found.value) < 4 * found.standard_error
    assert abs(found.value) < of_all / 5
    # To the first order in 1/n a sample covariance adds d (d + 1) / 4n and a sample mean d / n.
    assert found.slope == pytest.approx(d * (d + 1) / 4 + d, rel=0.3)
    assert found.distances[-1] == pytest.approx(of_all, rel=1e-9)
    assert (found.n, found.sizes[0], found.sizes[-1], len(found.sizes)) == (n, 200, n, 12)
    line, covariance = np.polyfit(1 / np.array(found.sizes), found.distances, 1, cov=True)
    assert (found.slope, found.value) == pytest.approx(tuple(line), rel=1e-6)
    assert found.standard_error == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-6)


def test_subsets_follow_the_seed_and_the_default_sizes():
    features = np.random.default_rng(7).random((60, 8))
    reference = Moments.of(features[:30])
    first, again, other = (fid_infinity(features, reference, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.distances[:-1] != other.distances[:-1]
    assert (first.sizes[0], first.sizes[-1], len(first.sizes)) == (8, 60, 15)


def test_wrong_input_is_refused():
    rows = np.random.default_rng(8).random((20, 4))
    moments = Moments.of(rows)
    with pytest.raises(InputError, match="different numbers of dimensions: 4 and 3"):
        frechet_distance(moments, Moments.of(rows[:, :3]))
    with pytest.raises(InputError, match="a covariance of 1 images"):
        frechet_distance(moments, Moments.of(rows[:1]))
    with pytest.raises(InputError, match=r"eigenvalues from -1 to 1: expected none below 0"):
        frechet_distance(Given(np.zeros(2), np.diag([1.0, -1.0])), moments)
    with pytest.raises(InputError, match="2 points of a line and its error: expected at least 3"):
        fid_infinity(rows, moments, points=2)
    with pytest.raises(InputError, match=r"15 subsets of 10 to 20 images: .* from 2 to 6"):
        fid_infinity(rows, moments, least=10)


def test_too_few_images_for_the_dimensions():
    assert bias_note(2049, 2048) is None
    assert "1,000 images are 1,049 fewer than" in bias_note(1000, 2048)
    a = Given(np.zeros(2), np.eye(2))
    assert frechet_distance(a, a).note is None
