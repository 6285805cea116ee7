"""Low-rank adapters against the merged kernels, which say what they are to compute."""

import dataclasses

import jax
import numpy as np
import pytest

import reference
import tiny
from cogview_jax.models.linear import LORA_A, LORA_B
from cogview_jax.models.lora import (
    MODULES,
    LoRAConfig,
    adapter_shapes,
    initial_adapters,
    merged,
    with_adapters,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox

CONFIG = LoRAConfig(rank=3, alpha=6.0)
MODEL = tiny.transformer_objective().model
BATCH = tiny.sequences(0, 4)


@pytest.fixture(scope="module")
def params():
    return tiny.start(tiny.transformer_objective()).params


@pytest.fixture(scope="module")
def adapters(params):
    """Both matrices away from 0."""
    return reference.random_like(adapter_shapes(params, CONFIG), 1)


def loss(params):
    hidden = MODEL.apply({"params": params}, BATCH.tokens, BATCH.positions)
    return (hidden**2 * np.linspace(0, 1, hidden.size).reshape(hidden.shape)).sum(), hidden


def test_the_low_rank_path_computes_what_merged_kernels_do(params, adapters):
    _, low = jax.jit(loss)(with_adapters(params, adapters, CONFIG.scale))
    whole = merged(params, adapters, CONFIG.scale)
    _, high = jax.jit(loss)(whole)
    _, base = jax.jit(loss)(params)
    np.testing.assert_allclose(low, high, rtol=2e-5, atol=2e-5)
    assert np.abs(low - base).max() > 0.1
    # The merged kernel, written out for one layer of queries, keys and values.
    layer, pair = (tree["blocks"]["block"]["attention"]["qkv"] for tree in (params, adapters))
    expected = layer["kernel"][1] + 2.0 * np.einsum("dr,rtf->dtf", pair[LORA_A][1], pair[LORA_B][1])
    kernel = whole["blocks"]["block"]["attention"]["qkv"]["kernel"]
    np.testing.assert_allclose(kernel[1], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(whole["word_embedding"], params["word_embedding"])


def test_gradients_are_those_of_the_merged_kernels(params, adapters):
    def through(join):
        own = jax.jit(jax.grad(lambda adapters: loss(join(params, adapters, CONFIG.scale))[0]))
        return own(adapters)

    low, high = through(with_adapters), through(merged)
    for (path, one), other in zip(
        jax.tree.leaves_with_path(low), jax.tree.leaves(high), strict=True
    ):
        size = np.abs(other).max()
        assert size > 0, path
        np.testing.assert_allclose(one, other, atol=1e-4 * size, err_msg=str(path))


def test_adapters_start_as_those_of_peft(params):
    made = unbox(initial_adapters(jax.random.key(0), params, LoRAConfig(rank=64)))
    for path, leaf in jax.tree.leaves_with_path(made):
        if path[-1].key == LORA_B:
            assert not leaf.any()
            continue
        bound = leaf.shape[1] ** -0.5
        assert 0.98 * bound < np.abs(leaf).max() <= bound
        # A uniform distribution, and no two alike.
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.05)
    first = [leaf[0, 0, :4] for leaf in jax.tree.leaves(made) if leaf.any()]
    assert len({tuple(map(float, row)) for row in first}) == len(MODULES)


def test_targets_name_every_layer_with_a_kernel(params):
    block = params["blocks"]["block"]
    kernels = [
        f"{branch}.{layer}"
        for branch in block
        for layer in block[branch]
        if "attention_" not in branch
    ]
    kernels = [name for name in kernels if "kernel" in str(jax.tree.structure(_at(block, name)))]
    assert sorted(kernels) == sorted(MODULES)
    assert LoRAConfig(rank=1).modules == MODULES


def _at(block, name):
    branch, layer = name.split(".")
    return block[branch][layer]


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (("qkv",), ("attention.qkv",)),
        (("down", "attention.out"), ("attention.out", "mlp.down")),
        (("mlp.up", "up"), ("mlp.up",)),
    ],
)
def test_a_target_is_a_name_or_its_end(params, targets, modules):
    config = dataclasses.replace(CONFIG, targets=targets)
    assert config.modules == modules
    block = adapter_shapes(params, config)["blocks"]["block"]
    assert [f"{branch}.{layer}" for branch in block for layer in block[branch]] == list(modules)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "rank = -1: expected 0 to 16384"),
        ({"alpha": 0.0}, "alpha = 0.0: expected above 0"),
        ({"targets": ()}, r"targets is empty: choose from qkv, out, up, down \(attention.qkv, "),
        ({"targets": ("qkv", "query")}, "no linear layer of a block has the name 'query'; choose"),
        ({"targets": ("kv",)}, "has the name 'kv'"),
        ({"targets": ("blocks.0.mlp.up",)}, "has the name 'blocks.0.mlp.up'"),
    ],
)
def test_what_is_no_adapter_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LoRAConfig(**settings)
