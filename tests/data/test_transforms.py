"""Crops and colours of images drawn by hand, and what augmentation may and may not do."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cogview_jax.data.transforms import (
    SquareView,
    center_crop,
    code_grids,
    pad_to_fit,
    random_crop,
    random_window,
    to_rgb,
)
from cogview_jax.runtime.errors import InputError


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are: red is the row, green the column."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(height)[:, None]
    image[..., 1] = np.arange(width)
    return image


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_grey_becomes_three_equal_channels(shape):
    grey = np.arange(6, dtype=np.uint8).reshape(shape)
    result = to_rgb(grey)
    assert result.shape == (2, 3, 3)
    for channel in range(3):
        np.testing.assert_array_equal(result[..., channel], grey.reshape(2, 3))


def test_rgb_stays_as_it_is():
    image = coordinates(3, 4)
    np.testing.assert_array_equal(to_rgb(image), image)


def test_alpha_blends_onto_white_as_real_numbers_do():
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 4), dtype=np.uint8)
    alpha = image[..., 3:] / 255
    np.testing.assert_array_equal(
        to_rgb(image), np.round(image[..., :3] * alpha + 255 * (1 - alpha))
    )
    grey = image[..., [0, 3]]
    np.testing.assert_array_equal(to_rgb(grey)[..., 0], to_rgb(image)[..., 0])


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (np.zeros((2, 2, 3), np.float32), "float32"),
        (np.zeros((2, 2, 5), np.uint8), "5 channels"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"\[1, 2, 2, 3\]"),
    ],
)
def test_what_is_no_image_is_refused(image, what):
    with pytest.raises(InputError, match=what):
        to_rgb(image)


def test_center_crop_takes_the_middle():
    wide = coordinates(4, 10)
    np.testing.assert_array_equal(center_crop(wide, 4), wide[:, 3:7])
    tall = coordinates(9, 4)
    np.testing.assert_array_equal(center_crop(tall, 4), tall[2:6])


def test_an_image_of_the_right_size_is_untouched():
    image = coordinates(8, 8)
    np.testing.assert_array_equal(center_crop(image, 8), image)


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [
        ((20, 44), (12, 24), (2, 0, 42, 20)),  # left, top, right, bottom
        ((52, 36), (8, 12), (0, 14, 36, 38)),
        ((36, 52), (12, 8), (14, 0, 38, 36)),
        ((5, 70), (16, 24), (31, 0, 39, 5)),  # 7.5 columns are 8
    ],
)
def test_oblong_crops_are_those_of_pillow(shape, size, box):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = Image.fromarray(image).crop(box).resize(size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(center_crop(image, size), np.asarray(expected))
    whole = center_crop(image, shape)
    np.testing.assert_array_equal(whole, image)


def test_shorter_side_then_crop_gives_the_same_image():
    smooth = np.asarray(Image.fromarray(coordinates(12, 20)).resize((200, 120)))
    whole = Image.fromarray(smooth).resize((50, 30), Image.Resampling.BICUBIC)
    expected = np.asarray(whole)[:, 10:40].astype(int)
    inner = (slice(1, -1), slice(1, -1))  # the border may see pixels beyond the square
    assert np.abs(center_crop(smooth, 30)[inner] - expected[inner]).max() <= 1


def test_shrinking_averages_fine_detail():
    checkerboard = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    small = center_crop(to_rgb(checkerboard.astype(np.uint8)), 8)
    assert np.abs(small.astype(int) - 127).max() <= 4


def test_small_images_are_enlarged():
    assert center_crop(np.full((2, 3, 3), 9, np.uint8), 16).tolist() == [[[9] * 3] * 16] * 16


def test_random_crops_are_squares_from_everywhere():
    image = coordinates(20, 40)
    generator = np.random.default_rng(0)
    # A share of 1 leaves the side at 20, so nothing is scaled and pixels tell their place.
    corners = set()
    for _ in range(300):
        crop = random_crop(image, 20, generator, smallest=1.0)
        left = int(crop[0, 0, 1])
        np.testing.assert_array_equal(crop, image[:, left : left + 20])
        corners.add(left)
    assert corners == set(range(21))


def test_random_crops_have_all_sides_between_smallest_and_whole():
    image = coordinates(100, 100)
    generator = np.random.default_rng(0)
    sides = []
    for _ in range(300):
        crop = random_crop(image, 50, generator, smallest=0.5).astype(int)
        sides.append((crop[-1, 0, 0] - crop[0, 0, 0]) * 50 / 49)
    assert min(sides) == pytest.approx(50, abs=3)
    assert max(sides) == pytest.approx(100, abs=3)


def test_the_plain_view_uses_no_randomness_and_never_flips():
    image = coordinates(8, 8)
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    for _ in range(20):
        np.testing.assert_array_equal(SquareView(8)(image, generator), image)
    assert generator.bit_generator.state == before


def test_flip_mirrors_half_of_the_time():
    image = coordinates(8, 8)
    generator = np.random.default_rng(0)
    seen = [SquareView(8, flip=True)(image, generator)[0, 0, 1] for _ in range(400)]
    assert set(seen) == {0, 7}
    assert 150 < seen.count(7) < 250


def test_padding_shows_the_whole_image_in_the_middle_of_white_paper():
    wide = coordinates(4, 10)
    shown = pad_to_fit(wide, 10)
    np.testing.assert_array_equal(shown[3:7], wide)
    assert (np.delete(shown, slice(3, 7), axis=0) == 255).all()
    tall = pad_to_fit(coordinates(9, 4), (9, 7))
    np.testing.assert_array_equal(tall[:, 1:5], coordinates(9, 4))
    assert (tall[:, [0, 5, 6]] == 255).all()


def test_a_padded_image_is_as_large_as_pillow_makes_it():
    image = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    shown = np.asarray(Image.fromarray(image).resize((20, 12), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pad_to_fit(image, (16, 20))[2:14], shown)
    assert pad_to_fit(np.zeros((1, 1000, 3), np.uint8), 8).sum(axis=(1, 2)).tolist() == [
        *([8 * 3 * 255] * 3),
        0,
        *([8 * 3 * 255] * 4),
    ]


def test_views_are_cropped_as_they_are_told():
    image = coordinates(8, 20)
    views = {crop: SquareView(8, crop=crop) for crop in ("center", "random", "pad")}
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(views["center"](image, rng), image[:, 6:14])
    np.testing.assert_array_equal(views["pad"](image, rng), pad_to_fit(image, 8))
    lefts = {int(views["random"](image, rng)[0, 0, 1]) for _ in range(200)}
    assert lefts == set(range(13))
    still = dataclasses.replace(views["random"], flip=True, smallest_crop=0.5).still()
    np.testing.assert_array_equal(still(image, rng), image[:, 6:14])
    assert dataclasses.replace(views["pad"], flip=True).still() == views["pad"]


def test_the_same_generator_gives_the_same_view():
    view = SquareView(8, smallest_crop=0.5, flip=True)
    image = coordinates(30, 20)
    one, two = (view(image, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (8, 8, 3)
    assert one.dtype == np.uint8


@pytest.mark.parametrize(
    "setting", [{"size": 0}, {"smallest_crop": 0.0}, {"smallest_crop": 1.1}], ids=str
)
def test_meaningless_views_are_refused(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(InputError, match=f"{name}={value}"):
        dataclasses.replace(SquareView(8), **setting)


def numbered(rows, columns):
    """A cell's row and column in one number."""
    return 100 * np.arange(rows)[:, None] + np.arange(columns)


def test_grids_are_taken_apart_in_order():
    small, large = numbered(2, 3), numbered(4, 6)
    first, second = code_grids(np.concatenate([small.ravel(), large.ravel()]), [(2, 3), (4, 6)])
    np.testing.assert_array_equal(first, small)
    np.testing.assert_array_equal(second, large)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (4, 6), (5, 2)])
def test_a_window_is_the_same_place_in_every_size(order, rows, columns):
    one, other = numbered(rows, columns), numbered(2 * rows, 2 * columns)
    grids, sides = [one, other][::order], [2, 4][::order]
    generator, places = np.random.default_rng(0), set()
    for _ in range(200):
        small, large = random_window(grids, sides, generator)[::order]
        top, left = divmod(int(small[0, 0]), 100)
        np.testing.assert_array_equal(small, one[top : top + 2, left : left + 2])
        whole = other[2 * top : 2 * top + 4, 2 * left : 2 * left + 4]
        np.testing.assert_array_equal(large, whole)
        places.add((top, left))
    assert places == {(row, column) for row in range(rows - 1) for column in range(columns - 1)}


def test_windows_of_squares_are_those_of_earlier_versions():
    """So a run that was begun with one goes on with the same rows."""
    ours, theirs = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(20):
        (window,) = random_window([numbered(9, 9)], [4], ours)
        assert divmod(int(window[0, 0]), 100) == tuple(theirs.integers(6, size=2))
    assert ours.random() == theirs.random()


def test_whole_images_draw_nothing():
    """So a run without windows reads the same rows as before there were any."""
    generator = np.random.default_rng(3)
    (window,) = random_window([numbered(4, 4)], [4], generator)
    np.testing.assert_array_equal(window, numbered(4, 4))
    assert generator.random() == np.random.default_rng(3).random()
