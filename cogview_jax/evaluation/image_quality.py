"""PSNR and SSIM of 8-bit images, as published.

SSIM is that of Wang et al. 2004 ("Image quality assessment: from error visibility to structural
similarity"), channel by channel: a Gaussian window of 11 x 11 pixels with a standard deviation of
1.5, population covariances, K1 = 0.01 and K2 = 0.03. Positions whose window leaves the image do not
count.

Legend: b images, h w rows and columns.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from cogview_jax.runtime.errors import InputError

#: The range of pixel values.
RANGE = 255
#: Of SSIM: the window's side and standard deviation in pixels, and the constants K1 and K2.
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def squared_error(
    a: UInt8[Array | np.ndarray, "b h w 3"], b: UInt8[Array | np.ndarray, "b h w 3"]
) -> Float[Array, " b"]:
    """The mean squared error of each pair, float32 [b], of pixels from 0 to 255."""
    difference = jnp.asarray(a, jnp.int32) - jnp.asarray(b, jnp.int32)
    rows = jnp.sum(difference**2, axis=(2, 3))  # whole numbers, exactly
    return jnp.mean(rows.astype(jnp.float32), axis=1) / (a.shape[2] * 3)


def psnr(error: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """10 log10(255^2 / error) in dB: mean squared errors [b] of 8-bit pixels -> float64 [b].

    It is infinite where there is no error.
    """
    with np.errstate(divide="ignore"):
        return 10 * np.log10(RANGE**2 / np.asarray(error, np.float64))


def ssim(
    a: UInt8[Array | np.ndarray, "b h w 3"], b: UInt8[Array | np.ndarray, "b h w 3"]
) -> Float[Array, " b"]:
    """The SSIM of each pair, float32 [b]: the mean over positions and channels; 1 for equal images.

    Raises:
        InputError: the images are smaller than the window.
    """
    if min(a.shape[1:3]) < WINDOW:
        raise InputError(
            f"images of {a.shape[1]} x {a.shape[2]} pixels are too small for SSIM: its window has"
            f" {WINDOW} x {WINDOW}"
        )
    # Covariances do not change when both images are shifted, and smaller numbers lose fewer digits.
    x, y = (jnp.asarray(image, jnp.float32) for image in (a, b))
    shift = jnp.mean(x, axis=(1, 2), keepdims=True)
    x, y = x - shift, y - shift
    mean_x, mean_y = _window_means(x), _window_means(y)
    variances = _window_means(x**2) - mean_x**2 + _window_means(y**2) - mean_y**2
    covariance = _window_means(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + shift, mean_y + shift
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _window_means(x: Float[Array, "b h w 3"]) -> Float[Array, "b i j 3"]:
    """Means weighted by the window, at each position where it fits."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    shares = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = jnp.asarray(shares / shares.sum(), jnp.float32)
    planes = jnp.moveaxis(x, 3, 1).reshape(-1, *x.shape[1:3], 1)
    for kernel in (weights[:, None, None, None], weights[None, :, None, None]):
        planes = jax.lax.conv_general_dilated(
            planes,
            kernel,
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
    return jnp.moveaxis(planes.reshape(x.shape[0], 3, *planes.shape[1:3]), 1, 3)
