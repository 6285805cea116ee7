"""The parts of a VQGAN against their plain forms; its whole is held to others' in tests/interop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.dry_run.flops import function_flops
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codecs.convolution import Convolution, UpsampledConvolution
from cogview_jax.tokenizers.codecs.vqgan import GroupNorm, VQGANConfig

CONFIG = VQGANConfig(
    image_size=16,
    codebook=12,
    code_width=4,
    channels=8,
    multipliers=(1, 2, 2),
    decoder_multipliers=(2, 1, 2),
    blocks=1,
    attention=(1,),
    latent_channels=8,
    norm_groups=4,
)


def random_params(module, x, seed=0):
    shapes = unbox(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    return reference.random_like(shapes, seed, std=0.2)


def test_an_upsampled_convolution_is_doubling_and_then_a_convolution():
    """Values and all gradients, of images that are not square."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 3, 5, 4)).astype(np.float32)
    upstream = generator.standard_normal((2, 6, 10, 6)).astype(np.float32)
    params = random_params(UpsampledConvolution(6), x)

    def ours(params, x):
        return UpsampledConvolution(6).apply({"params": params}, x)

    def plain(params, x):
        doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return Convolution(6, 3).apply({"params": params}, doubled)

    np.testing.assert_allclose(ours(params, x), plain(params, x), atol=3e-6)
    found, expected = (
        jax.grad(lambda p, x, form=form: jnp.sum(form(p, x) * upstream), (0, 1))(params, x)
        for form in (ours, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, expected)


def test_a_group_norm_by_loops():
    """Also where the mean is far larger than the spread."""
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 6)).astype(np.float32)
    x[1] += 300
    params = random_params(GroupNorm(3), x)
    found = GroupNorm(3).apply({"params": params}, jnp.asarray(x))
    for image, row in zip(x.astype(np.float64), np.asarray(found), strict=True):
        for group in range(3):
            channels = slice(2 * group, 2 * group + 2)
            values = image[..., channels]
            normal = (values - values.mean()) / np.sqrt(values.var() + 1e-6)
            expected = normal * params["scale"][channels] + params["bias"][channels]
            np.testing.assert_allclose(row[..., channels], expected, atol=2e-4)


def test_a_stride_has_a_row_of_zeros_below_and_a_column_right():
    """Of a kernel whose taps are 1, output (0, 0) sums pixels 0 to 2, and the last ones fewer."""
    x = jnp.ones((1, 4, 6, 1))
    params = {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}
    found = Convolution(1, 3, 2, (0, 1)).apply({"params": params}, x)
    assert found[0, :, :, 0].tolist() == [[9, 9, 6], [6, 6, 4]]


def test_multiply_adds_are_those_of_the_program():
    codec = CONFIG.module()
    pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: unbox(codec.init(jax.random.key(0), x)), pixels)
    encode, decode = (functools.partial(codec.apply, method=name) for name in ("encode", "decode"))
    vectors = jax.eval_shape(encode, variables, pixels)
    assert function_flops(encode, variables, pixels) == 2 * CONFIG.encoder_multiply_adds
    # An upsampled convolution computes a row and a column more than it keeps.
    margins = 16 * ((5 * 5 - 4 * 4) * 16 * 16 + (9 * 9 - 8 * 8) * 8 * 8)
    counted = function_flops(decode, variables, vectors)
    assert counted == 2 * (CONFIG.decoder_multiply_adds + margins)


def test_a_narrow_type_gives_nearly_the_same():
    pixels = np.random.default_rng(2).standard_normal((1, 16, 16, 3)).astype(np.float32)
    params = random_params(CONFIG.module(), pixels)
    exact = CONFIG.module().apply({"params": params}, pixels)
    rough = CONFIG.module(jnp.bfloat16).apply({"params": params}, pixels)
    assert exact.dtype == rough.dtype == jnp.float32
    difference = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 0 < difference < 0.1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"multipliers": (1,)}, r"multipliers \(1,\): expected 2 to 12 levels"),
        (
            {"decoder_multipliers": (1, 2)},
            r"decoder_multipliers \(1, 2\): expected none, or as many",
        ),
        ({"attention": (3,)}, r"attention = \(3,\): expected 0 to 2"),
        ({"norm_groups": 3}, "norm_groups 3 does not divide 1 x 8 channels"),
        ({"image_size": 18}, "image_size 18 is no multiple of its downsampling 4"),
        ({"blocks": 0}, "blocks = 0"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **setting)
