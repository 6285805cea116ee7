"""The fused kernel against attention written out; without a GPU, what asks for it and its twin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

import reference
from cogview_jax.models.attention import attention_scores, attention_weights, causal_mask
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.kernels import fused_attention as fused
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.precision import POLICIES
from cogview_jax.runtime.sharding import unbox

B, N, T, H = 2, 3, 37, 64
CONFIG = TransformerConfig(layers=2, width=128, heads=2, dropout=0.0, remat="none")
TOKENS = np.random.default_rng(0).integers(0, 100, (2, 19))
POSITIONS = np.broadcast_to(np.arange(19), (2, 19))
ON_GPU = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="cuDNN's kernel needs an NVIDIA GPU, here is none"
)


@pytest.fixture
def twin(monkeypatch):
    """The same function in XLA's operations, for machines without the kernel."""
    monkeypatch.setattr(fused, "KERNEL", "xla")


def inputs(dtype):
    generator = np.random.default_rng(1)
    drawn = generator.standard_normal((4, B, N, T, H)) * np.array([3, 1, 1, 1]).reshape(
        4, 1, 1, 1, 1
    )
    return [jnp.asarray(x, dtype) for x in drawn]


def with_gradients(function, queries, keys, values, upstream):
    """[B, N, T, H] of the function, and the gradients of its product with `upstream`."""
    y, pullback = jax.vjp(function, queries, keys, values)
    return [np.asarray(x, np.float64) for x in (y, *pullback(upstream.astype(y.dtype)))]


def kernel(queries, keys, values):
    return rearrange(fused.fused_attention(queries, keys, values), "b t n h -> b n t h")


def written_out(queries, keys, values, alpha=32.0):
    """As `Attention` does it without the kernel."""
    scores = attention_scores(queries, keys, alpha)
    weights = attention_weights(scores, causal_mask(queries.shape[2]), alpha)
    return jnp.einsum("bnts,bnsh->bnth", weights.astype(values.dtype), values)


def test_what_it_computes_is_causal_softmax_attention(twin):
    queries, keys, values, _ = inputs(jnp.float32)
    with jax.default_matmul_precision("highest"):
        y = np.asarray(kernel(queries, keys, values))
    for b, n in np.ndindex(B, N):
        q, k, v = (reference.float64(x[b, n]) for x in (queries, keys, values))
        expected = reference.attention_weights(q, k, np.tril(np.ones((T, T), bool))) @ v
        np.testing.assert_allclose(y[b, n], expected, atol=3e-6)


@ON_GPU
@pytest.mark.parametrize("length", [T, T - 1])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_kernel_is_as_near_to_float32_as_attention_written_out(dtype, length):
    """In value and gradients, by the norm of the difference."""
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


def hidden(config, policy="bfloat16", **arguments):
    model = Transformer(config, 100, 19, POLICIES[policy])
    params = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS, POSITIONS)["params"])
    params = jax.tree.map(jnp.asarray, reference.random_like(params, 2))
    return model.apply({"params": params}, TOKENS, POSITIONS, **arguments)


@pytest.fixture
def calls(monkeypatch, twin):
    """How often a model asked for the kernel; the device is made out to have it."""
    made = []

    def counted(*parts):
        made.append(parts)
        return jax.nn.dot_product_attention(
            *(rearrange(x, "b n t h -> b t n h") for x in parts), is_causal=True
        )

    monkeypatch.setattr("cogview_jax.models.transformer.has_kernel", lambda dtype, width: True)
    monkeypatch.setattr("cogview_jax.models.attention.fused_attention", counted)
    return made


def test_a_model_computes_the_same_with_it(calls):
    expected = hidden(CONFIG, "float32", seen=causal_mask(19))
    assert not calls
    found = hidden(CONFIG, "float32")
    assert calls
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_a_model_leaves_it_alone_where_it_would_compute_something_else(calls):
    dropping = {"dropout": jax.random.key(0)}
    weights = dataclasses.replace(CONFIG, attention_dropout=0.1)
    hidden(weights, rngs=dropping)
    hidden(CONFIG, "float16_pure")
    hidden(CONFIG, mutable="extremes")
    assert not calls
    hidden(weights)
    hidden(dataclasses.replace(CONFIG, dropout=0.1, attention_dropout=0.0), rngs=dropping)
    assert calls


class Device:
    def __init__(self, capability):
        self.compute_capability = capability


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "width", "expected"),
    [
        ("gpu", "9.0", jnp.bfloat16, 64, True),
        ("gpu", "10.3", jnp.float16, 128, True),
        ("gpu", "8.0", jnp.bfloat16, 40, True),
        ("gpu", "7.0", jnp.float16, 64, False),
        ("gpu", "gfx942", jnp.bfloat16, 64, False),
        ("gpu", "9.0", jnp.float32, 64, False),
        ("gpu", "9.0", jnp.bfloat16, 60, False),
        ("gpu", "9.0", jnp.bfloat16, 256, False),
        ("tpu", "9.0", jnp.bfloat16, 64, False),
        ("cpu", "9.0", jnp.bfloat16, 64, False),
    ],
)
def test_which_devices_have_it(monkeypatch, backend, capability, dtype, width, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [Device(capability)])
    assert fused.has_kernel(dtype, width) is expected
