"""Means of what is measured of upsampled images, and their lines."""

import numpy as np
import pytest
from PIL import Image

from cogview_jax.evaluation.upsampling import Upsampler, compared, pair_lines, upsampled_images
from cogview_jax.models.networks.lpips import lpips
from random_networks import lpips_weights

#: More than are compared together.
COUNT, SIZE = 37, 32


@pytest.fixture(scope="module")
def images():
    """True images, and those that differ by noise that grows with their number."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    noise = rng.normal(0, 1, true.shape) * np.arange(1, COUNT + 1)[:, None, None, None]
    return true, np.clip(true + noise, 0, 255).astype(np.uint8)


def test_means_and_standard_errors_are_over_images(images):
    true, noisy = images
    weights = lpips_weights("alexnet")
    report = compared({"exact": true, "noisy": noisy}, true, weights)
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(noisy, true, strict=True)]
    found = report["squared_error"]["noisy"]
    assert found["mean"] == pytest.approx(np.mean(errors), rel=1e-6)
    spread = np.sqrt(np.sum((errors - np.mean(errors)) ** 2) / (COUNT - 1))
    assert found["standard_error"] == pytest.approx(spread / COUNT**0.5, rel=1e-6)
    assert found["n"] == COUNT
    distances = np.asarray(lpips(weights, *(side / np.float32(127.5) - 1 for side in images)))
    assert report["lpips"]["noisy"]["mean"] == pytest.approx(distances.mean(), rel=1e-4)
    assert [report[name]["exact"]["mean"] for name in report] == pytest.approx([0, 1, 0], abs=1e-6)
    assert report.keys() == {"squared_error", "ssim", "lpips"}

    lines = pair_lines("held_out", report)
    assert lines[0].split() == ["held_out", "MSE", "SSIM", "LPIPS"]
    assert lines[2].split()[:3] == ["noisy", f"{found['mean']:.4g}", "+-"]


def test_lpips_is_left_out_without_weights(images):
    true, noisy = (side[:3] for side in images)
    assert compared({"noisy": noisy}, true, None).keys() == {"squared_error", "ssim"}


def test_what_is_back_projected_agrees_with_the_small_images():
    """Both resamplings, and the model's images, as soon as there are enough rounds."""
    rng = np.random.default_rng(1)
    smooth = rng.integers(90, 160, (2, 4, 4, 3), np.uint8)
    true = np.stack(
        [np.asarray(Image.fromarray(each).resize((16, 16), Image.BICUBIC)) for each in smooth]
    )
    small = np.rint(true.reshape(2, 8, 2, 8, 2, 3).mean(axis=(2, 4))).astype(np.uint8)
    grey = Upsampler(lambda given, texts: np.full_like(true, 128), lambda given: given)
    images = upsampled_images(grey, small, true, ["", ""], rounds=40)
    for name, each in images.items():
        lacking = np.abs(each.reshape(2, 8, 2, 8, 2, 3).mean(axis=(2, 4)) - small).max()
        agrees = name == "enlarged" or name.endswith("back_projected") or name == "ceiling"
        assert (lacking < 1) == agrees, (name, lacking)
