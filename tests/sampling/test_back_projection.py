"""Back-projection, against Pillow's resampling and what it must keep."""

import numpy as np
import pytest
from PIL import Image

from cogview_jax.sampling.back_projection import back_projected, downsampled_mse


@pytest.fixture
def images():
    """Large images and small ones of something else, away from the ends of the range."""
    rng = np.random.default_rng(0)
    large = rng.integers(90, 160, (3, 12, 16, 3), dtype=np.uint8)
    return large, rng.integers(90, 160, (3, 6, 8, 3), dtype=np.uint8)


def halved(images):
    return images.reshape(len(images), 6, 2, 8, 2, 3).astype(float).mean(axis=(2, 4))


def resized(channel):
    image = Image.fromarray(channel.astype(np.float32))
    return np.asarray(image.resize((16, 12), Image.Resampling.BILINEAR))


def test_a_misfit_is_the_mean_squared_difference_of_the_reduced_image(images):
    large, small = images
    expected = np.square(halved(large) - small).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(downsampled_mse(large, small), expected, rtol=1e-12)
    # Every large image against every small one.
    every = downsampled_mse(large[:, None], small[None])
    np.testing.assert_allclose(np.diagonal(every), expected, rtol=1e-12)
    assert every.shape == (3, 3)
    assert (
        downsampled_mse(np.full((2, 2, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8)) == 255**2
    )


@pytest.mark.parametrize("rounds", [1, 3])
def test_each_round_adds_the_enlarged_difference(images, rounds):
    large, small = images
    expected = large.astype(float)
    for _ in range(rounds):
        lacking = np.moveaxis(small - halved(expected), -1, 1)
        expected += np.stack(
            [np.stack([resized(channel) for channel in each], axis=-1) for each in lacking]
        )
    found = np.stack(back_projected(large, small, rounds))
    assert found.dtype == np.uint8
    # A rounding apart at most, where a value lies halfway.
    assert np.abs(found - np.clip(expected, 0, 255)).max() < 0.501


def test_reduced_it_becomes_the_small_image(images):
    large, small = images
    found = np.stack(back_projected(large, small, 60))
    inside = (found > 0) & (found < 255)
    assert inside.all()  # nothing was cut
    # The mean of four roundings, and what 60 rounds leave of 70: under 1e-5.
    assert np.abs(halved(found) - small).max() <= 0.5 + 1e-3


def test_the_difference_shrinks_as_fast_as_promised():
    """Slowest is a board of single pixels: to three quarters a round, inside of it."""
    board = 128 + 100 * (-1) ** np.add.outer(np.arange(16), np.arange(16))
    small = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    large = np.full((32, 32, 3), 128, np.uint8)
    for rounds in (1, 4, 8):
        (found,) = back_projected([large], [small], rounds)
        left = small - found.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(np.abs(left[6:10, 6:10]), 100 * 0.75**rounds, atol=0.5)


def test_what_a_small_image_cannot_tell_stays_as_it_was_sampled():
    rng = np.random.default_rng(1)
    detail = np.array([[9, -9], [-9, 9]])  # adds up to nothing in each 2 x 2
    small = rng.integers(50, 200, (1, 6, 8, 3), dtype=np.uint8)
    plain = small.repeat(2, axis=1).repeat(2, axis=2)
    detailed = (plain + np.tile(detail, (6, 8))[None, ..., None]).astype(np.uint8)
    np.testing.assert_array_equal(back_projected(detailed, small, 5), detailed)


def test_no_round_changes_nothing(images):
    large, small = images
    np.testing.assert_array_equal(back_projected(large, small, 0), large)


def test_values_stay_between_0_and_255():
    white, black = np.full((1, 4, 4, 3), 255, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)
    (found,) = back_projected(white, black, 2)
    np.testing.assert_array_equal(found, np.zeros((4, 4, 3)))
    bright = black.copy()
    bright[0, 0, 0] = 255
    (found,) = back_projected(np.zeros_like(white), bright, 20)
    assert found[0, 0].tolist() == [255, 255, 255]  # it would be more, not little again
