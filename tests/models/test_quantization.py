"""Kernels in 8 bits against the same arithmetic in NumPy, and whole models near float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import (
    prepare_decode_params,
    stacked_arrays,
    unstack_arrays,
    unstack_layers,
)
from cogview_jax.models.linear import TRANSPOSED, Linear, split_for_cores, transpose_for_matvec
from cogview_jax.models.quantization import (
    KERNEL_SCALE,
    is_quantized,
    quantize_kernels,
    quantized_arrays,
)
from cogview_jax.models.transformer import Transformer, logits_of, whole_forward, without_blocks
from cogview_jax.runtime.precision import policy_of
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.decode import generate, sample_keys
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.layout import left_padded

GENERATOR = np.random.default_rng(0)
#: Two layers of a kernel with outputs of two axes, the second a hundred times larger.
KERNELS = GENERATOR.standard_normal((2, 16, 3, 5)).astype(np.float32)
KERNELS[1] *= 100
KERNELS[0, :, 1, 2] = 0


def quantized_by_hand(kernels):
    """Integers and scales, one channel after the other."""
    layers, width, *outputs = kernels.shape
    flat = kernels.reshape(layers, width, -1).astype(np.float64)
    integers, scale = np.zeros(flat.shape, int), np.zeros((layers, flat.shape[2]))
    for layer in range(layers):
        for channel in range(flat.shape[2]):
            column = flat[layer, :, channel]
            scale[layer, channel] = np.abs(column).max() / 127
            if scale[layer, channel]:
                integers[layer, :, channel] = np.rint(column / scale[layer, channel])
    return integers.reshape(kernels.shape), scale.reshape(layers, *outputs)


def test_kernels_are_rounded_by_layer_and_output():
    integers, scale = quantize_kernels(KERNELS)
    by_hand, scale_by_hand = quantized_by_hand(KERNELS)
    assert (integers.dtype, scale.dtype) == (jnp.int8, jnp.float32)
    np.testing.assert_array_equal(integers, by_hand)
    np.testing.assert_allclose(scale, scale_by_hand, rtol=1e-6)
    assert np.abs(integers).max(axis=1).min(where=scale > 0, initial=127) == 127
    error = np.abs(np.asarray(integers) * np.asarray(scale)[:, None] - KERNELS)
    assert np.all(error <= 0.5001 * scale_by_hand[:, None])


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("form", ["as trained", "whole", "in parts"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_multiplies_with_what_the_integers_stand_for(rows, form, dtype):
    integers, scale = (array[1] for array in quantize_kernels(KERNELS))
    turned = {TRANSPOSED: transpose_for_matvec(integers)}
    kernel = {
        "as trained": {"kernel": integers},
        "whole": turned,
        "in parts": split_for_cores(turned, 4),
    }[form]
    params = kernel | {KERNEL_SCALE: scale, "bias": jnp.asarray(KERNELS[1, 0])}
    # Rows whose values differ by orders of magnitude, and one of zeros.
    x = GENERATOR.standard_normal((rows, 2, 16)) * np.logspace(-3, 3, 2 * rows).reshape(rows, 2, 1)
    x[0, 0] = 0
    x = np.asarray(jnp.asarray(x, dtype).astype(jnp.float32))
    layer = Linear((3, 5), ("embed", "qkv", "heads"), 0.02, dtype)
    found = layer.apply({"params": params}, x).astype(jnp.float32)
    exact = np.asarray(integers, np.float64) * np.asarray(scale, np.float64)
    expected = np.tensordot(x.astype(np.float64), exact, 1) + KERNELS[1, 0]
    # Of a row's values 15 bits count, so its error is a share of its largest.
    share = 2e-5 if dtype == "float32" else 4e-3
    bound = share * np.abs(x).max(-1)[..., None, None] * np.abs(exact).sum(0) + 1e-3
    bound += np.abs(expected) * (1e-6 if dtype == "float32" else 1e-2) + 1e-3
    np.testing.assert_array_less(np.abs(found - expected), bound)


CONFIG = TransformerConfig(layers=2, width=32, heads=4, dropout=0.0)
MODEL = Transformer(CONFIG, vocab_size=60, positions=24)


@pytest.fixture(scope="module")
def params():
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, tokens)["params"]
    return reference.random_like(unbox(boxed), seed=0)


def test_a_model_in_8_bits_is_near_the_model(params):
    stacked = jax.tree.map(jnp.asarray, params)
    small = unstack_arrays(quantized_arrays(stacked_arrays(stacked)))
    assert is_quantized(small)
    assert not is_quantized(stacked)
    tokens = np.random.default_rng(1).integers(0, 60, (3, 20)).astype(np.int32)
    positions = np.broadcast_to(np.arange(20, dtype=np.int32), tokens.shape)

    def logits(params):
        hidden = whole_forward(MODEL, params, tokens, positions)
        return np.asarray(logits_of(without_blocks(params), hidden, model=MODEL))

    exact, near = logits(prepare_decode_params(unstack_layers(stacked))), logits(small)
    assert 0 < np.sqrt(np.mean((near - exact) ** 2)) < 0.02 * exact.std()
    kinds = {str(leaf.dtype): 0 for leaf in jax.tree.leaves(small)}
    assert kinds.keys() == {"int8", "float16", "float32"}
    kernels = sum(leaf.size for leaf in jax.tree.leaves(small) if leaf.dtype == jnp.int8)
    assert kernels == CONFIG.layers * (4 + 2 * CONFIG.mlp_ratio) * CONFIG.width**2


def test_tokens_do_not_depend_on_the_batch(params):
    stacked = jax.tree.map(jnp.asarray, params)
    layers = unstack_arrays(quantized_arrays(stacked_arrays(stacked)))
    prompts = [np.array(ids) for ids in ([55, 3, 4, 56], [55], [55, 1, 2, 3, 4, 56])]
    small = MODEL.clone(policy=policy_of("int8"), implementation=None)

    def sampled(rows):
        tokens, valid = left_padded([prompts[i] for i in rows], 9)
        keys = sample_keys(3, [str(i) for i in rows], [0] * len(rows))
        settings = row_settings([SamplingConfig(temperature=0.9, top_k=20)] * len(rows))
        span = {"model": small, "count": 12, "first": 20, "last": 52}
        return np.asarray(generate(layers, tokens, valid, keys, settings, **span))

    together = sampled([0, 1, 2])
    assert len(np.unique(together)) > 8
    for row in range(3):
        np.testing.assert_array_equal(sampled([row])[0], together[row])
