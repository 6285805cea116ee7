"""The blurs of FID-k against Pillow, scipy and torchvision."""

import numpy as np
import pytest

from cogview_jax.evaluation.blur import KERNELS, blurred
from cogview_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def blurs(oracles):
    """(image, radius, name of the blur, expected) of every blur in the file."""
    arrays = np.load(oracles("blur/blur.npz"))
    names = [name.split(":") for name in arrays.files]
    return [
        (arrays[f"{parts[0]}:image"], int(parts[1][1:]), parts[2], arrays[":".join(parts)])
        for parts in names
        if len(parts) == 3
    ]


def of(blurs, name):
    chosen = [(image, radius, expected) for image, radius, n, expected in blurs if n == name]
    assert len(chosen) > 3
    return chosen


def test_pillow(blurs):
    for image, radius, expected in of(blurs, "pil_gaussian"):
        found = blurred(image, radius)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def test_scipy(blurs):
    for image, radius, expected in of(blurs, "scipy_reflect"):
        found = blurred(image, radius, "scipy")
        assert found.dtype == np.uint8
        assert np.abs(found - expected.astype(np.float64)).max() < 0.5 + 1e-4


def test_torchvision_as_lafite_uses_it(blurs):
    """It computes in float32, so a value midway between grey levels may be rounded either way."""
    for image, radius, expected in of(blurs, "torchvision_lafite"):
        found = blurred(image, radius, "lafite")
        assert found.dtype == np.uint8
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= 1
        assert np.mean(difference > 0) < 1e-3


def test_standard_deviations():
    """The variance of a white line's blur is that of the kernel."""
    image = np.zeros((9, 161, 3), np.uint8)
    image[:, 80] = 255
    offsets = np.arange(161) - 80
    for kernel, expected in (("pil", 4.0), ("scipy", 4.0), ("lafite", 2.11)):
        shares = blurred(image, 4, kernel)[4, :, 0].astype(float)
        spread = np.sqrt(np.sum(shares * offsets**2) / np.sum(shares))
        assert spread == pytest.approx(expected, rel=0.06), kernel


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_blur(kernel):
    image = np.random.default_rng(0).integers(256, size=(7, 5, 3)).astype(np.uint8)
    assert blurred(image, 0, kernel) is image
    flat = np.full((7, 5, 3), 93, np.uint8)
    np.testing.assert_array_equal(blurred(flat, 2, kernel), flat)


def test_wrong_settings_are_refused():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match="'box': expected one of pil, scipy, lafite"):
        blurred(image, 1, "box")
    with pytest.raises(InputError, match="blur radius -1: expected at least 0"):
        blurred(image, -1)
