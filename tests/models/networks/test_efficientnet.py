"""A block of EfficientNet-Lite0 against plain loops, and the network with its trained weights.

With random weights it is compared in `tests/evaluation/test_features.py`.
"""

import os

import jax
import numpy as np
import pytest

from cogview_jax.interop.feature_networks import read_efficientnet
from cogview_jax.models.networks import efficientnet
from cogview_jax.models.networks.convolution import ConvWeights
from cogview_jax.models.networks.efficientnet import BlockShape, BlockWeights, apply_block


def test_trained_weights(fixtures_root):
    path = os.environ.get("COGVIEW_EFFICIENTNET")
    if not path:
        pytest.skip(
            "needs efficientnet-lite0-57934424.pth, which COGVIEW_EFFICIENTNET names"
            " (see tests/fixtures/README.md)"
        )
    expected = np.load(fixtures_root / "efficientnet_lite0" / "features.npz")
    images = np.random.default_rng(7).integers(0, 256, (2, 28, 28, 3), np.uint8)
    images = np.float32(images.repeat(8, 1).repeat(8, 2))
    weights = read_efficientnet(path)
    pooled = jax.jit(efficientnet.features)(weights, (images - 127) / 128)
    for found, name in ((pooled, "features"), (efficientnet.logits(weights, pooled), "logits")):
        right = expected[f"real:{name}"]
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * np.abs(right).max())


def slow_block(shape, block, x):
    """A block on one image [h, w, c] by plain loops over positions, in float64."""
    x, y = x.astype(np.float64), x.astype(np.float64)
    if block.expand is not None:
        y = np.clip(y @ block.expand.kernel[0, 0] + block.expand.bias, 0, 6)
    out = [-(-size // shape.stride) for size in y.shape[:2]]
    padded = np.zeros((y.shape[0] + 8, y.shape[1] + 8, y.shape[2]))
    padded[4:-4, 4:-4] = y
    # The first window begins so far outside that the last sticks out alike or by one more.
    begins = [
        4 - max((n - 1) * shape.stride + shape.taps - size, 0) // 2
        for n, size in zip(out, y.shape[:2], strict=True)
    ]
    z = np.zeros((*out, y.shape[2]))
    for i in range(out[0]):
        for j in range(out[1]):
            top, left = begins[0] + i * shape.stride, begins[1] + j * shape.stride
            window = padded[top : top + shape.taps, left : left + shape.taps]
            z[i, j] = (window * block.depthwise.kernel[:, :, 0]).sum(axis=(0, 1))
    z = np.clip(z + block.depthwise.bias, 0, 6) @ block.project.kernel[0, 0] + block.project.bias
    return x + z if z.shape == x.shape else z


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (BlockShape(3, 1, 4, 24, 4), (6, 5)),
        (BlockShape(5, 2, 4, 24, 6), (8, 7)),
        (BlockShape(3, 2, 4, 8, 4), (5, 6)),
        (BlockShape(3, 1, 6, 6, 5), (4, 4)),
    ],
)
def test_block(shape, size):
    rng = np.random.default_rng(0)

    def conv(*kernel):
        values = rng.standard_normal(kernel), rng.standard_normal(kernel[-1])
        return ConvWeights(*(array.astype(np.float32) for array in values))

    expand = conv(1, 1, shape.inputs, shape.wide) if shape.wide > shape.inputs else None
    block = BlockWeights(
        expand,
        conv(shape.taps, shape.taps, 1, shape.wide),
        conv(1, 1, shape.wide, shape.outputs),
    )
    x = rng.standard_normal((2, *size, shape.inputs)).astype(np.float32)
    found = jax.jit(apply_block, static_argnums=0)(shape, block, x)
    expected = np.stack([slow_block(shape, block, image) for image in x])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
