"""Convolutions against loops and XLA's own, the codec against them, and pixels at their values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rounding

import reference
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codecs.codec import decode_codes, denormalise, encode_images, normalise
from cogview_jax.tokenizers.codecs.convolution import Convolution, TransposedConvolution
from cogview_jax.tokenizers.codecs.vqvae import VQVAE, VQVAEConfig
from cogview_jax.tokenizers.quantisers.moving_average import initial_codebook
from cogview_jax.tokenizers.quantisers.quantiser import nearest

CONFIG = VQVAEConfig(
    image_size=16, downsampling=4, channels=(6, 8), residual_blocks=1, codebook=20, code_width=5
)


def random_params(codec, pixels, seed=0):
    shapes = unbox(jax.eval_shape(codec.init, jax.random.key(0), pixels)["params"])
    return reference.random_like(shapes, seed, std=0.2)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


def transposed_inputs():
    generator = np.random.default_rng(1)
    x = generator.standard_normal((2, 3, 5, 4)).astype(np.float32)
    params = random_params(TransposedConvolution(6), x)
    return x, params, generator.standard_normal((2, 6, 10, 6)).astype(np.float32)


def xla_transposed(params, x):
    """With `transpose_kernel` the kernel is that of the convolution which this reverses."""
    kernel = params["kernel"].transpose(0, 1, 3, 2)
    y = jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", transpose_kernel=True)
    return y + params["bias"]


def ours_transposed(params, x):
    return TransposedConvolution(6).apply({"params": params}, x)


def test_transposed_convolution_scatters():
    x, params, _ = transposed_inputs()
    result = ours_transposed(params, x)
    for picture, row in zip(reference.float64(x), result, strict=True):
        expected = reference.transposed_convolution(picture, reference.float64(params))
        np.testing.assert_allclose(row, expected, atol=3e-6)


def test_transposed_convolution_and_its_gradients_are_those_of_xla():
    x, params, upstream = transposed_inputs()
    np.testing.assert_allclose(ours_transposed(params, x), xla_transposed(params, x), atol=3e-6)
    ours, expected = (
        jax.grad(lambda p, x, form=form: jnp.sum(form(p, x) * upstream), (0, 1))(params, x)
        for form in (ours_transposed, xla_transposed)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, expected)


@pytest.mark.parametrize(("taps", "stride"), [(4, 2), (3, 1), (1, 1)])
def test_convolution_gathers(taps, stride):
    x = np.random.default_rng(2).standard_normal((2, 6, 8, 3)).astype(np.float32)
    convolution = Convolution(5, taps, stride)
    params = random_params(convolution, x)
    result = convolution.apply({"params": params}, x)
    for picture, row in zip(reference.float64(x), result, strict=True):
        expected = reference.convolution(picture, reference.float64(params), stride)
        np.testing.assert_allclose(row, expected, atol=3e-6)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_codec_equals_the_plain_form(images, blocks):
    config = dataclasses.replace(CONFIG, residual_blocks=blocks)
    codec, pixels = VQVAE(config), normalise(config, images)
    params = random_params(codec, pixels)
    exact = reference.float64(params)
    vectors = jax.jit(lambda p, x: codec.apply({"params": p}, x, method=codec.encode))(
        params, pixels
    )
    decoded = jax.jit(lambda p, x: codec.apply({"params": p}, x, method=codec.decode))(
        params, vectors
    )
    for i in range(len(images)):
        expected = reference.encode(exact, config, reference.float64(pixels[i]))
        np.testing.assert_allclose(vectors[i], expected, rtol=1e-5, atol=1e-5)
        expected = reference.decode(exact, config, reference.float64(vectors[i]))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(decoded[i], expected, atol=1e-5 * scale)


def test_images_become_the_nearest_codes_and_codes_their_decoded_pixels(images):
    codec, pixels = VQVAE(CONFIG), normalise(CONFIG, images)
    params = random_params(codec, pixels)
    params["decoder_out"]["kernel"] *= 20  # beyond black and white
    vectors = codec.apply({"params": params}, pixels, method=codec.encode).reshape(-1, 5)
    codebook = initial_codebook(jax.random.key(0), CONFIG.codebook, CONFIG.code_width)
    codebook = codebook._replace(codes=vectors[12:])
    codes = np.asarray(encode_images(codec, params, codebook, images))
    np.testing.assert_array_equal(codes.reshape(-1), reference.nearest(vectors[12:], vectors))
    decoded = decode_codes(codec, params, codebook, codes)
    assert decoded.dtype == np.uint8
    pixels = codec.apply({"params": params}, codebook.codes[codes], method=codec.decode)
    values = 255 * (np.asarray(pixels) * CONFIG.std + CONFIG.mean)
    assert (values > 300).any()
    assert (values < -50).any()
    assert np.abs(decoded - np.clip(values, 0, 255)).max() <= 0.501


def test_normalisation_by_hand_and_back_for_every_value():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels = np.asarray(normalise(CONFIG, values))
    black = [-0.79093 / 0.30379, -0.76271 / 0.32279, -0.7534 / 0.328]
    white = [0.20907 / 0.30379, 0.23729 / 0.32279, 0.2466 / 0.328]
    np.testing.assert_allclose(pixels[0, 0, 0], black, rtol=1e-5)
    np.testing.assert_allclose(pixels[0, -1, -1], white, rtol=1e-5)
    np.testing.assert_allclose(denormalise(CONFIG, pixels), values, atol=2e-4)


def test_denormalised_pixels_are_clipped_and_never_stretched():
    """A picture of few values keeps them, also beside one that leaves the range."""
    config = dataclasses.replace(CONFIG, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    pixels = jnp.array([0.0, 0.2, -0.2, 9.0, -9.0])[:, None, None, None].repeat(3, axis=-1)
    shown = denormalise(config, pixels)[:, 0, 0, 0]
    np.testing.assert_allclose(shown, [127.5, 140.25, 114.75, 255, 0], rtol=1e-6)


def test_default_sizes_are_those_of_the_paper():
    config = VQVAEConfig()
    assert (config.grid, config.levels, config.level_channels) == (32, 3, (512, 512, 512))
    assert dataclasses.replace(CONFIG, channels=(6, 8)).level_channels == (6, 8)
    pixels = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    shapes = unbox(jax.eval_shape(VQVAE(config).init, jax.random.key(0), pixels)["params"])
    inner = 16 * 512 * 512 + 512  # a convolution between two levels
    encoder = (16 * 3 * 512 + 512) + 2 * inner + (512 * 256 + 256)
    decoder = (16 * 256 * 512 + 512) + 2 * inner + (512 * 3 + 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == encoder + decoder


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"downsampling": 6}, "downsampling = 6: expected a power of two"),
        ({"downsampling": 1}, "downsampling = 1: expected a power of two"),
        ({"downsampling": 0}, "downsampling = 0: expected a power of two"),
        ({"image_size": 18}, "image_size 18 is no multiple of its downsampling 4"),
        ({"image_size": 0}, "image_size = 0"),
        ({"channels": (6, 8, 9)}, r"channels \(6, 8, 9\): expected one number or 2"),
        ({"channels": 0}, "channels = 0"),
        ({"channels": (6, 0)}, r"channels = \(6, 0\)"),
        ({"residual_blocks": -1}, "residual_blocks = -1"),
        ({"codebook": 0}, "codebook = 0"),
        ({"code_width": 0}, "code_width = 0"),
        ({"std": (1.0, 0.0, 1.0)}, r"std = \(1.0, 0.0, 1.0\)"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **setting)


def test_pictures_are_encoded_at_the_highest_precision():
    """On an emulated TPU the codes are those of a CPU, though not those of its default."""
    generator, codec = np.random.default_rng(5), VQVAE(CONFIG)
    images = generator.integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    params = random_params(codec, normalise(CONFIG, jnp.asarray(images)))

    def vectors(params, images):
        pixels = normalise(CONFIG, images)
        return codec.apply({"params": params}, pixels, method=codec.encode)

    some = generator.choice(np.asarray(vectors(params, images)).reshape(-1, 5), CONFIG.codebook)
    codebook = initial_codebook(jax.random.key(1), *some.shape)._replace(codes=some)

    def encoded(params, images):
        return encode_images(codec, params, codebook, images)

    codes = encoded(params, images)
    np.testing.assert_array_equal(rounding.on_tpu(encoded)(params, images), codes)
    coarse = nearest(some, rounding.on_tpu(vectors)(params, images))
    assert 0 < np.mean(coarse != codes) < 0.2
