"""The forms of convolutions that are fast on CPUs, against XLA's convolution in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.tokenizers.codecs.convolution import WIDE, convolve


@pytest.mark.parametrize(
    ("images", "taps", "stride", "padding", "channels"),
    [
        (1, 3, 1, (1, 1), 3),
        (11, 3, 1, (1, 1), 3),  # parts of two images and a last one
        (3, 3, 2, (0, 1), 4),
        (2, 4, 2, (1, 1), 5),
        (2, 4, 2, (1, 1), WIDE),
        (2, 1, 1, (0, 0), 6),
    ],
)
def test_values_and_gradients_are_those_of_a_plain_convolution(
    images, taps, stride, padding, channels
):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((images, 6, 8, channels))
    kernel = generator.standard_normal((taps, taps, channels, 7)) / (taps * channels**0.5)

    def plain(x, kernel):
        """Sums over taps, in float64."""
        x = np.pad(x, ((0, 0), padding, padding, (0, 0)))
        rows, columns = ((n - taps) // stride + 1 for n in x.shape[1:3])
        y = np.zeros((images, rows, columns, 7))
        for i in range(taps):
            for j in range(taps):
                cut = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
                y += cut @ kernel[i, j]
        return y

    expected = plain(x, kernel)
    upstream = generator.standard_normal(expected.shape)
    x32, kernel32, upstream32 = (jnp.asarray(a, jnp.float32) for a in (x, kernel, upstream))

    @jax.jit
    def ours(x, kernel):
        return convolve(x, kernel, stride, padding)

    np.testing.assert_allclose(ours(x32, kernel32), expected, atol=1e-5)
    to_x, to_kernel = jax.vjp(ours, x32, kernel32)[1](upstream32)
    # The function is linear in each argument: a derivative is a difference of values.
    for _ in range(3):
        dx, dk = generator.standard_normal(x.shape), generator.standard_normal(kernel.shape)
        np.testing.assert_allclose(
            np.sum(np.asarray(to_x, np.float64) * dx),
            np.sum(upstream * plain(dx, kernel)),
            rtol=1e-4,
            atol=1e-3,
        )
        np.testing.assert_allclose(
            np.sum(np.asarray(to_kernel, np.float64) * dk),
            np.sum(upstream * plain(x, dk)),
            rtol=1e-4,
            atol=1e-3,
        )
