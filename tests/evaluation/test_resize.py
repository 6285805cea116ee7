"""The protocols of resizing against the packages they are named after, and by hand."""

import numpy as np
import pytest
from PIL import Image

from cogview_jax.evaluation.resize import RESIZES

PACKAGES = {"clean": "clean_fid", "legacy_pytorch": "pytorch_fid", "tf1": "torch_fidelity"}


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_as_the_package(oracles, name):
    expected = np.load(oracles("inception/features.npz"))
    suffix = f":{PACKAGES[name]}"
    keys = [key for key in expected if key.startswith("resized:") and key.endswith(suffix)]
    assert len(keys) >= 4
    for key in keys:
        file = oracles(f"inception/{key.split(':')[1]}.png")
        resized = RESIZES[name].apply(np.asarray(Image.open(file).convert("RGB")), 299)
        assert (resized.shape, resized.dtype) == ((299, 299, 3), np.float32)
        found = resized.transpose(2, 0, 1)[:, ::13, ::13]
        # Of values up to 255: rounding of float32, far below what tells the protocols apart.
        np.testing.assert_allclose(found, expected[key], rtol=0, atol=3e-4)


def ramp(values):
    """A picture of one row, the same in every channel."""
    return np.repeat(np.array(values, np.uint8)[None, :, None], 3, axis=2)


def test_where_pixels_are_taken_from():
    # Four positions between two pixels: centres at 1/8, 3/8, ... of the width, or at 0, 1/4, ...
    image = ramp([0, 100])
    for name, row in (
        ("legacy_pytorch", [0, 25, 75, 100]),
        ("tf1", [0, 50, 100, 100]),
    ):
        resized = RESIZES[name].apply(image, 4)
        np.testing.assert_array_equal(resized[:, :, 1], np.tile(np.float32(row), (4, 1)))


def test_rounding_and_clipping():
    image = ramp([255, 255, 0, 0, 255, 255])
    clean, release = (RESIZES[name].apply(image, 9) for name in ("clean", "release"))
    assert clean.min() == 0  # the filter undershoots
    assert clean.max() == 255
    assert (clean != np.round(clean)).any()
    np.testing.assert_array_equal(release, np.round(release))


@pytest.mark.parametrize("name", RESIZES)
def test_an_image_of_the_right_size_stays(name):
    image = np.random.default_rng(0).integers(0, 256, (17, 17, 3), np.uint8)
    np.testing.assert_array_equal(RESIZES[name].apply(image, 17), image)


def test_only_the_releases_own_is_not_comparable():
    assert [name for name, resize in RESIZES.items() if not resize.comparable] == ["release"]
