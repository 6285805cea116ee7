"""Inception v3: its names and shapes, and the batch norms in its convolutions.

What it computes is compared in `tests/evaluation/test_features.py`.
"""

import json

import jax
import numpy as np

from cogview_jax.models.networks.inception import CONVS, EPSILON, _average_pool, folded


def test_names_and_shapes(oracles):
    shapes = json.loads(oracles("inception/shapes.json").read_text())
    expected = {
        name.removesuffix(".conv.weight"): (*shape[2:], shape[1], shape[0])
        for name, shape in shapes.items()
        if name.endswith(".conv.weight")
    }
    assert dict(CONVS) == expected


def test_batch_norm_folded_into_a_convolution():
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((1, 1, 5, 4)), rng.standard_normal((7, 5))
    scale, shift, mean = rng.standard_normal((3, 4))
    variance = rng.random(4)
    conv = folded(kernel, scale, shift, mean, variance)
    expected = scale * (x @ kernel[0, 0] - mean) / np.sqrt(variance + EPSILON) + shift
    np.testing.assert_allclose(x @ conv.kernel[0, 0] + conv.bias, expected, rtol=0, atol=1e-5)
    assert conv.kernel.dtype == conv.bias.dtype == np.float32


def test_padding_counts_in_averages_or_not():
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    for count_padding, corner in ((False, (0 + 1 + 4 + 5) / 4), (True, (0 + 1 + 4 + 5) / 9)):
        pooled = jax.jit(_average_pool, static_argnames="count_padding")(
            x, count_padding=count_padding
        )
        assert pooled.shape == x.shape
        np.testing.assert_allclose(pooled[0, 0, 0, 0], corner, rtol=1e-6)
        np.testing.assert_allclose(pooled[0, 1, 1, 0], x[0, :, :3].mean(), rtol=1e-6)
