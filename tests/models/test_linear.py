"""All forms of multiplying with a kernel compute the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.models import linear
from cogview_jax.models.layer_params import prepare_decode_params
from cogview_jax.models.linear import (
    TRANSPOSED,
    Linear,
    matmul,
    matvec_parts,
    matvec_product,
    split_for_cores,
    transpose_for_matvec,
)

GENERATOR = np.random.default_rng(0)
KERNEL = GENERATOR.standard_normal((16, 3, 5)).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 16), (4, 16), (2, 3, 16)])
@pytest.mark.parametrize("features", [(3, 5), (7,)])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_product_and_its_gradients_are_those_of_float64(shape, features, platform):
    kernel = GENERATOR.standard_normal((16, *features)).astype(np.float32)
    x = GENERATOR.standard_normal(shape).astype(np.float32)
    y, pullback = jax.vjp(lambda x, kernel: matmul(x, kernel, jnp.float32, platform), x, kernel)
    up = GENERATOR.standard_normal(y.shape).astype(np.float32)
    wide, wide_kernel, wide_up = (array.astype(np.float64) for array in (x, kernel, up))
    np.testing.assert_allclose(y, np.tensordot(wide, wide_kernel, 1), atol=1e-5)
    dx, dkernel = pullback(up)
    n = len(features)
    np.testing.assert_allclose(
        dx, np.tensordot(wide_up, wide_kernel, (range(-n, 0), range(1, 1 + n))), atol=1e-5
    )
    rows = range(x.ndim - 1)
    np.testing.assert_allclose(dkernel, np.tensordot(wide, wide_up, (rows, rows)), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("cores", [1, 3, 64])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_kernel_in_parts_is_the_kernel(monkeypatch, rows, cores, platform):
    monkeypatch.setattr(linear.os, "cpu_count", lambda: cores)
    x = GENERATOR.standard_normal((rows, 2, 16)).astype(np.float32)
    whole = {TRANSPOSED: transpose_for_matvec(KERNEL)}
    parts = split_for_cores(whole, matvec_parts(rows, platform))[TRANSPOSED]
    assert len(parts) == (min(cores, 8) if rows > 1 and platform == "cpu" else 1)
    np.testing.assert_array_equal(np.concatenate(parts), KERNEL.reshape(16, 15).T)
    expected = np.tensordot(x.astype(np.float64), KERNEL.reshape(16, 15).astype(np.float64), 1)
    np.testing.assert_allclose(matvec_product(x, parts), expected, atol=1e-5)


def test_a_layer_reads_kernels_in_the_form_for_decoding():
    layer = Linear((3, 5), ("embed", "qkv", "heads"), 0.02)
    params = {"kernel": jnp.asarray(KERNEL), "bias": jnp.asarray(KERNEL[0])}
    turned = prepare_decode_params({"inner": params})["inner"]
    assert set(turned) == ({TRANSPOSED, "bias"} if jax.default_backend() == "cpu" else set(params))
    x = GENERATOR.standard_normal((4, 1, 16)).astype(np.float32)
    expected = layer.apply({"params": params}, x)
    for form in (
        turned,
        split_for_cores(turned, 4),
        split_for_cores(split_for_cores(turned, 4), 4),
    ):
        np.testing.assert_allclose(layer.apply({"params": form}, x), expected, atol=1e-5)
