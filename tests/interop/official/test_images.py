"""Images read as the release reads them.

The arrays of writing in image_io.npz are left out: the release stretches what it saves to its own
darkest and brightest value, and this project never does (a saved image has its true values).
"""

import io

import numpy as np
import pytest
from PIL import Image

from cogview_jax.data.records import BadRecord
from cogview_jax.interop.official.images import official_pixels, official_square
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.codecs.codec import normalise
from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig


@pytest.fixture(scope="module")
def table(fixtures):
    return np.load(fixtures / "image_io.npz")


def read(fixtures, name):
    return official_pixels((fixtures / "images" / f"{name}.png").read_bytes(), name)


def test_files_are_decoded_as_they_are(fixtures, table):
    names = [name.removeprefix("raw_") for name in table if name.startswith("raw_")]
    assert {read(fixtures, name).shape[-1] for name in names} == {3, 4}
    for name in names:
        np.testing.assert_array_equal(read(fixtures, name), table[f"raw_{name}"])


def test_what_the_encoder_sees_is_what_the_release_shows_it(fixtures, table):
    official = np.load(fixtures / "vqvae_eval.npz")
    mean, std = (tuple(official[name].tolist()) for name in ("norm_mean", "norm_std"))
    pixel = VQVAEConfig(mean=mean, std=std)
    names = [name for name in table if name.startswith("read_")]
    assert names
    for name in names:
        _, image, size = name.split("_")
        square = official_square(read(fixtures, image), int(size))
        assert square.dtype == np.uint8
        ours = np.moveaxis(np.asarray(normalise(pixel, square[None])), -1, 1)
        np.testing.assert_allclose(ours, table[name], atol=1e-6)


def test_the_centre_is_cut_out_and_a_square_of_that_size_is_not_touched():
    image = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    np.testing.assert_array_equal(official_square(image, 2), image[:, 2:4])
    tall = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(official_square(tall, 2), tall[2:4])
    np.testing.assert_array_equal(official_square(image[:, :2], 2), image[:, :2])


def test_transparent_parts_turn_black_only_where_the_image_is_scaled():
    image = np.full((4, 4, 4), 200, np.uint8)
    image[..., 3] = 0
    assert (official_square(image, 4) == 200).all()
    assert not official_square(image, 2).any()


def png(mode):
    buffer = io.BytesIO()
    Image.new(mode, (3, 3)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no image", "x: unreadable image: of no known format"),
        (png("RGB")[:45], "x: unreadable image: "),
        (png("L"), "x: image of mode L: the release reads RGB and RGBA only"),
        (png("P"), "x: image of mode P"),
    ],
)
def test_what_the_release_cannot_read_is_a_bad_record(data, reason):
    with pytest.raises(BadRecord) as error:
        official_pixels(data, "x")
    assert str(error.value).startswith(reason)


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 2)])
def test_arrays_that_are_no_images_are_refused(shape):
    with pytest.raises(InputError, match="expected uint8"):
        official_square(np.zeros(shape, np.uint8), 2)
