"""Fused kernels equal plain attention; without their devices, XLA computes the same functions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

import reference
from cogview_jax.models.activation_max import ACTIVATION_MAX
from cogview_jax.models.attention import attention_scores, attention_weights, causal_mask
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.implementation import Implementation
from cogview_jax.models.kernels.block_attention import CausalBlocks
from cogview_jax.models.kernels.fused_attention import Causal, fused_attention
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.precision import POLICIES
from cogview_jax.runtime.sharding import unbox

KERNELS = ("cudnn", "splash")
B, N, T, H = 2, 3, 37, 64
CONFIG = TransformerConfig(layers=2, width=128, heads=2, dropout=0.0, remat="none")
TOKENS = np.random.default_rng(0).integers(0, 100, (2, 19))
POSITIONS = np.broadcast_to(np.arange(19), (2, 19))
ON_GPU = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="cuDNN's kernel needs an NVIDIA GPU, here is none"
)


def inputs(dtype):
    generator = np.random.default_rng(1)
    drawn = generator.standard_normal((4, B, N, T, H)) * np.array([3, 1, 1, 1]).reshape(
        4, 1, 1, 1, 1
    )
    return [jnp.asarray(x, dtype) for x in drawn]


def with_gradients(function, queries, keys, values, upstream):
    """Returns the output [B, N, T, H] and the gradients of its product with `upstream`."""
    y, pullback = jax.vjp(function, queries, keys, values)
    return [np.asarray(x, np.float64) for x in (y, *pullback(upstream.astype(y.dtype)))]


def kernel(queries, keys, values, name="cudnn", interpret=False):
    pattern = Causal(name, interpret)
    return rearrange(fused_attention(queries, keys, values, pattern), "b t n h -> b n t h")


def written_out(queries, keys, values, alpha=32.0):
    """Attends as `Attention` does without the kernel."""
    scores = attention_scores(queries, keys, alpha)
    weights = attention_weights(scores, causal_mask(queries.shape[2]), alpha)
    return jnp.einsum("bnts,bnsh->bnth", weights.astype(values.dtype), values)


@pytest.mark.parametrize("name", KERNELS)
def test_what_it_computes_is_causal_softmax_attention(name):
    queries, keys, values, _ = inputs(jnp.float32)
    with jax.default_matmul_precision("highest"):
        y = np.asarray(kernel(queries, keys, values, name, interpret=True))
    for b, n in np.ndindex(B, N):
        q, k, v = (reference.float64(x[b, n]) for x in (queries, keys, values))
        expected = reference.attention_weights(q, k, np.tril(np.ones((T, T), bool))) @ v
        np.testing.assert_allclose(y[b, n], expected, atol=3e-6)


@pytest.mark.parametrize(
    ("length", "dtype", "tolerance"), [(530, jnp.float32, 4e-6), (T, jnp.bfloat16, 2e-2)]
)
def test_gradients_of_the_kernel_of_tpus_are_those_of_attention_written_out(
    length, dtype, tolerance
):
    """Two blocks and one, with padding."""
    drawn = np.random.default_rng(1).standard_normal((4, 1, 2, length, H))
    arrays = [jnp.asarray(x, dtype) for x in drawn]
    found = with_gradients(lambda *a: kernel(*a, "splash", interpret=True), *arrays)
    expected = with_gradients(written_out, *(x.astype(jnp.float32) for x in arrays))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@ON_GPU
@pytest.mark.parametrize("length", [T, T - 1])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_kernel_is_as_near_to_float32_as_attention_written_out(dtype, length):
    """This compares values and gradients by the norm of the difference."""
    rounded = [x[:, :, :length] for x in inputs(dtype)]
    with jax.default_matmul_precision("highest"):
        expected = with_gradients(written_out, *(x.astype(jnp.float32) for x in rounded))
    for mine, slow, exact in zip(
        with_gradients(kernel, *rounded),
        with_gradients(written_out, *rounded),
        expected,
        strict=True,
    ):
        error, yardstick = (np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (mine, slow))
        assert error < max(1.2 * yardstick, float(jnp.finfo(dtype).eps))


def applied(name, config, policy="bfloat16", method=None, arguments=(TOKENS, POSITIONS), **options):
    """Applies a model whose fused kernel is computed by operations of XLA."""
    twin = Implementation(name, "layers", jax.default_backend(), interpret=True)
    model = Transformer(config, 100, 19, POLICIES[policy], implementation=twin)
    params = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS, POSITIONS)["params"])
    params = jax.tree.map(jnp.asarray, reference.random_like(params, 2))
    return model.apply({"params": params}, *arguments, method=method, **options)


@pytest.mark.parametrize("name", KERNELS)
def test_a_model_computes_the_same_with_it(name):
    found = applied(name, CONFIG, "float32")
    expected = applied(name, CONFIG, "float32", pattern=causal_mask(19))
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert not np.array_equal(found, expected)  # it is another program


@pytest.mark.parametrize("name", KERNELS)
def test_a_model_leaves_it_alone_where_it_would_compute_something_else(name):
    def pattern(config, **options):
        found = applied(name, config, method="default_pattern", arguments=(TOKENS,), **options)
        return found[0] if "mutable" in options else found

    dropping = {"dropout": jax.random.key(0)}
    weights = dataclasses.replace(CONFIG, attention_dropout=0.1)
    branches = dataclasses.replace(CONFIG, dropout=0.1, attention_dropout=0.0)
    assert isinstance(pattern(CONFIG, mutable=ACTIVATION_MAX), jax.Array)
    assert pattern(weights, rngs=dropping) == CausalBlocks()
    assert pattern(weights) == pattern(branches, rngs=dropping) == Causal(name, interpret=True)
