"""PSNR and SSIM against scikit-image, and what they are for images in a batch."""

import json

import jax
import numpy as np
import pytest

from cogview_jax.evaluation.image_quality import psnr, squared_error, ssim
from cogview_jax.runtime.errors import InputError


def test_scikit_image(oracles):
    pairs = np.load(oracles("psnr_ssim/pairs.npz"))
    expected = json.loads(oracles("psnr_ssim/values.json").read_text())["pairs"]
    assert len(expected) == len(pairs.files) // 2 > 0
    for i, values in enumerate(expected):
        a, b = (pairs[f"{i}:{side}"][None] for side in "ab")
        error = np.asarray(jax.jit(squared_error)(a, b))
        assert error[0] == pytest.approx(values["mse"], rel=1e-6)
        assert psnr(error)[0] == pytest.approx(float(values["psnr"]), abs=1e-6)
        found = float(jax.jit(ssim)(a, b)[0])
        assert found == pytest.approx(values["ssim_gaussian_sigma_1.5_as_wang_2004"], abs=1e-6)


def test_rows_of_a_batch_are_independent():
    rng = np.random.default_rng(0)
    a = rng.integers(256, size=(3, 11, 14, 3)).astype(np.uint8)
    b = np.clip(a + rng.integers(-20, 20, size=a.shape), 0, 255).astype(np.uint8)
    b[1] = a[1]
    for measure, of_equals in ((squared_error, 0), (ssim, 1)):
        measure = jax.jit(measure)
        found = measure(a, b)
        alone = [float(measure(a[i : i + 1], b[i : i + 1])[0]) for i in range(3)]
        np.testing.assert_allclose(found, alone, rtol=1e-6)
        assert found[1] == pytest.approx(of_equals, abs=1e-6)
    assert psnr(np.float32([0, 255**2])).tolist() == [np.inf, 0]


def test_images_smaller_than_the_window_are_refused():
    small = np.zeros((1, 10, 32, 3), np.uint8)
    with pytest.raises(InputError, match=r"images of 10 x 32 .* its window has 11 x 11"):
        ssim(small, small)
