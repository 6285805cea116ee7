"""The attention weights of every layer are those of loops in float64."""

import dataclasses

import jax
import numpy as np
import pytest

import reference
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_attention import layer_attention
from cogview_jax.models.layer_params import prepare_decode_params, unstack_layers
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.sharding import unbox

CONFIG = TransformerConfig(layers=3, width=16, heads=2, dropout=0.0, remat="none")
TOKENS = np.random.default_rng(0).integers(0, 40, 9)
POSITIONS = np.array([0, 1, 2, 3, 0, 1, 2, 3, 4])


def random_params(model):
    tokens = jax.ShapeDtypeStruct((1, 9), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    return reference.random_like(unbox(shapes), 0)


@pytest.mark.parametrize(
    ("relaxed", "prepare"), [(True, prepare_decode_params), (False, lambda params: params)]
)
def test_weights_are_those_of_the_slow_transformer(relaxed, prepare):
    """With PB-relax and without it: the softmax is the same."""
    model = Transformer(dataclasses.replace(CONFIG, pb_relax_attention=relaxed), 40, 9)
    stacked = random_params(model)
    params = prepare(unstack_layers(stacked))
    found = np.stack(list(layer_attention(model, params, TOKENS, POSITIONS)))
    expected = reference.layer_attention(stacked, CONFIG, TOKENS, POSITIONS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # Far from uniform and unlike each other, so that the comparison tells something.
    assert expected[:, :, -1].max() > 0.5
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.1


def test_weights_have_no_place_among_the_parameters():
    model = Transformer(CONFIG, 40, 9)
    variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS[None], POSITIONS[None])
    assert set(variables) == {"params"}
