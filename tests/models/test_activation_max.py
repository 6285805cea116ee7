"""The recorded maxima are those of the values, whether layers are recomputed or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.models.activation_max import ACTIVATION_MAX, layer_activation_max
from cogview_jax.models.attention import attention_scores, causal_mask
from cogview_jax.models.block import Block
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.sharding import unbox

CONFIG = TransformerConfig(layers=3, width=16, heads=2, dropout=0.0, remat="none")
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 6))
POSITIONS = np.broadcast_to(np.arange(6), TOKENS.shape)


def random_params(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, POSITIONS)["params"]
    return reference.random_like(unbox(shapes), 0)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_largest_activations_are_those_of_the_layers_one_by_one(remat):
    model = Transformer(dataclasses.replace(CONFIG, remat=remat), 40, 6)
    params = random_params(model)
    _, sown = jax.jit(
        lambda p: model.apply({"params": p}, TOKENS, POSITIONS, mutable=ACTIVATION_MAX)
    )(params)
    found = layer_activation_max(sown)
    x = model.apply({"params": params}, TOKENS, POSITIONS, method=model.embed)
    mask = causal_mask(6)
    for i, layer in enumerate(unstack_layers(params)["blocks"]):
        block = Block(model.config)
        y, inner = block.apply({"params": layer}, x, mask, capture_intermediates=True)

        def out(*path, inner=inner):
            node = inner["intermediates"]
            for name in path:
                node = node[name]
            return node["__call__"][0]

        after = x + out("attention_out")
        inputs = (x, out("attention", "out"), after, out("mlp", "down"))
        queries, keys, _ = jnp.moveaxis(
            out("attention", "qkv").reshape(2, 6, 3, 2, 8), (2, 3), (0, 2)
        )
        scores = jnp.where(mask, attention_scores(queries, keys, CONFIG.alpha), 0)
        expected = {
            "main": np.abs(y[0]).max(),
            "norm_inputs": max(np.abs(value).max() for value in inputs),
            "scores": np.abs(scores).max(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=1e-5, err_msg=name)
        x = y[0]


def test_what_is_no_number_is_noted_as_such():
    model = Transformer(CONFIG, 40, 6)
    params = random_params(model)
    params["blocks"]["block"]["mlp"]["down"]["bias"][1] = np.inf
    _, sown = model.apply({"params": params}, TOKENS, POSITIONS, mutable=ACTIVATION_MAX)
    finite = {
        name: np.isfinite(values).tolist() for name, values in layer_activation_max(sown).items()
    }
    assert finite["norm_inputs"] == [True, False, False]
    assert finite["main"] == [True, False, False]
    assert finite["scores"] == [True, True, False]
