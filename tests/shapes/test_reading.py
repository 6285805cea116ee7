"""Readings in numbers: centre, radius and colour of what was drawn, found without the caption."""

import numpy as np
import pytest
from scipy import ndimage

from cogview_jax.shapes import scenes as shapes
from cogview_jax.shapes.outlines import coverage
from cogview_jax.shapes.reading import read


def paint(shape: str, size: int, x: float, y: float, radius: float, rgb, ground) -> np.ndarray:
    share = coverage(shape, size, x, y, radius)[:, :, None]
    return (ground + share * (np.array(rgb) - ground) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("size", [32, 64])
def test_every_outline_is_found_where_it_lies(shape, size):
    rng = np.random.default_rng(1)
    for radius in (0.125, 0.17, 0.22):
        x, y = rng.uniform(0.3, 0.7, 2)
        image = paint(shape, size, x, y, radius, (45, 90, 220), 185)
        (ways,) = read(image).objects
        assert [way.shape for way in ways] == [shape]
        assert abs(ways[0].x - x) < 0.2 / size
        assert abs(ways[0].y - y) < 0.2 / size
        assert ways[0].radius == pytest.approx(radius, rel=0.03)


@pytest.mark.parametrize("ground", [255, 185])
@pytest.mark.parametrize(("name", "rgb"), [(c, row[1]) for c, row in shapes.COLOURS.items()])
def test_every_colour_is_read_at_the_corners_of_its_jitter(name, rgb, ground):
    """On a thin ring at 32 pixels, where hardly a pixel has the full colour."""
    for corner in np.indices((2, 2, 2)).reshape(3, -1).T * 24 - 12:
        jittered = (np.array(rgb) + corner).clip(0, 255)
        image = paint("ring", 32, 0.51, 0.49, 0.13, jittered, ground)
        (ways,) = read(image).objects
        assert ways[0].colour == name


@pytest.mark.parametrize(
    ("ground", "name"),
    [(255, "white"), (240, "white"), (185, "gray"), (200, "gray"), (120, None), (0, None)],
)
def test_backgrounds(ground, name):
    reading = read(np.full((32, 32, 3), ground, np.uint8))
    assert reading.background == name
    assert reading.objects == ()


def test_a_colour_far_from_the_table_has_no_name():
    (ways,) = read(paint("circle", 64, 0.5, 0.5, 0.2, (0, 255, 255), 255)).objects
    assert (ways[0].shape, ways[0].colour) == ("circle", None)


def test_no_image_is_too_strange_to_be_read():
    """Noise, smooth and rough, has objects with ragged edges and centroids far outside of them.

    Without limits for the centre, four of these fifteen images end in a division by zero.
    """
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 32, 32, 3)) * 600
    with np.errstate(invalid="raise", divide="raise", over="raise"):
        for number in range(18, 33):
            rough = noise[number]
            blur = (number % 3, number % 3, 0)
            image = (ndimage.gaussian_filter(rough, blur) + 200).clip(0, 255)
            for ways in read(image.astype(np.uint8)).objects:
                assert all(0 <= way.x <= 1 and 0 <= way.y <= 1 for way in ways)
