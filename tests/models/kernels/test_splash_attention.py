"""The kernel of TPUs on a mesh, and lowered for TPUs, of which there need be none."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.models.kernels.splash_attention import splash_attention
from cogview_jax.runtime.mesh import MeshConfig, make_mesh

MESH = MeshConfig(data=2, fsdp=2, tensor=2)
KERNELS = {"splash_mha_fwd_residuals", "splash_mha_dq_no_residuals", "splash_mha_dkv_no_residuals"}


def gradients(interpret):
    """The function of queries, keys and values that gives the gradients of all three."""

    def loss(*arrays):
        y = splash_attention(*arrays, interpret=interpret)
        return (y.astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


@pytest.mark.parametrize(("rows", "heads", "split"), [(4, 2, (1, 1)), (3, 3, (3, 3))])
def test_each_device_attends_in_its_rows_and_heads(rows, heads, split):
    """Rows and heads that the mesh does not divide are whole on every device."""
    arrays = np.random.default_rng(0).standard_normal((3, rows, heads, 20, 8)).astype(np.float32)
    expected = jax.tree.leaves(gradients(interpret=True)(*arrays))
    with jax.set_mesh(make_mesh(MESH)):
        found = jax.tree.leaves(gradients(interpret=True)(*arrays))
        text = str(jax.make_jaxpr(gradients(interpret=False))(*arrays))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
    # The padded queries, keys and values of one device.
    assert f"f32[{split[0]},{split[1]},128,8]" in text


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("mesh", [MESH, None])
def test_it_is_lowered_for_tpus(mesh, dtype):
    """Rows of the paper's model with a length that no block divides."""
    arrays = [jax.ShapeDtypeStruct((4, 2, 1089, 64), dtype)] * 3
    with jax.set_mesh(make_mesh(mesh or MeshConfig(), jax.devices()[: 8 if mesh else 1])):
        traced = gradients(interpret=False).trace(*arrays)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert set(re.findall(r'kernel_name = "(\w+)"', text)) == KERNELS
    assert text.count("custom_call @tpu_custom_call") == 3


def test_jax_loads_it_only_where_it_is_used():
    """Nothing but a TPU needs the module of jax, which takes a while to import."""
    program = (
        "import sys, cogview_jax.models.transformer;"
        "assert not [name for name in sys.modules if 'splash_attention_kernel' in name]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
