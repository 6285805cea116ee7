"""The report on models that enlarge drawings well, and not at all."""

import numpy as np
import pytest

from cogview_jax.evaluation.benchmarks.shapes import super_resolution_report
from cogview_jax.evaluation.upsampling import RESAMPLING, mean_squared_error, resampled
from cogview_jax.shapes.fresh import fresh_scenes

COUNT = 6


def test_squared_errors_are_means_over_values():
    a = np.array([[0, 255], [10, 7]], np.uint8)
    assert mean_squared_error(a, np.array([[3, 251], [10, 7]], np.uint8)) == (9 + 16) / 4


def twice(images, axis):
    """Bilinear: three fourths of the value a quarter of a pixel away, and a fourth of the next."""
    values = np.moveaxis(images.astype(float), axis, 0)
    before, after = values[[0, *range(len(values) - 1)]], values[[*range(1, len(values)), -1]]
    pairs = np.stack([values * 0.75 + before * 0.25, values * 0.75 + after * 0.25], 1)
    return np.moveaxis(pairs.reshape(-1, *values.shape[1:]), 0, axis)


def test_each_way_to_enlarge_is_held_against_the_drawing_in_full_size():
    drawings = {each.name: each.drawings(64) for each in fresh_scenes(COUNT, 2)}
    small_drawings = {each.name: each.drawings(32) for each in fresh_scenes(COUNT, 2)}
    names, asked = iter(drawings), []

    def enlarge(images, texts):
        asked.append((images.shape, len(texts)))
        return 255 - drawings[next(names)]

    def reconstruct(images):
        return images - np.minimum(images, 3)

    report = super_resolution_report(enlarge, reconstruct, size=32, count=COUNT, seed=2, rounds=1)
    assert asked == [((COUNT, 32, 32, 3), COUNT)] * 2
    for name, split in report.items():
        errors, true = split["squared_error"], drawings[name].astype(float)
        assert split["drawings"] == COUNT
        assert errors["sampled"] == pytest.approx(np.mean((255 - 2 * true) ** 2))
        assert errors["ceiling"] == pytest.approx(np.mean(np.minimum(true, 3) ** 2))
        small = small_drawings[name]
        for key, images in (("bilinear", small), ("bilinear_of_codes", reconstruct(small))):
            # Pillow rounds after each direction.
            expected = np.mean((twice(twice(images, 1), 2) - true) ** 2)
            assert errors[key] == pytest.approx(expected, rel=5e-3)
        smooth = resampled(small, RESAMPLING["bilinear"]).astype(float)
        for key, large in (("enlarged", 255 - true), ("bilinear_back_projected", smooth)):
            halves = large.reshape(COUNT, 32, 2, 32, 2, 3).mean(axis=(2, 4))
            large = np.clip(np.rint(large + twice(twice(small - halves, 1), 2)), 0, 255)
            assert errors[key] == pytest.approx(np.mean((large - true) ** 2), rel=1e-9)
        # A sharper kernel loses less.
        assert errors["ceiling"] < errors["bicubic"] < errors["bilinear"]
