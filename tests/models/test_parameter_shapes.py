"""The shapes of parameters are those of the module's own `init`, boxes and all."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.tokenizers.vocabulary import Vocabulary

SMALL = TransformerConfig(layers=3, width=8, heads=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "none", "unroll": 3},
        {"sandwich_ln": False, "pb_relax_norm": False},
        {"attention": "sparse", "window": 4, "window_blocks": 2, "pivots": 4},
    ],
)
def test_shapes_and_names_are_those_of_init(changes):
    config = dataclasses.replace(SMALL, **changes)
    model = Transformer(config, 20, 12, vocabulary=Vocabulary(codes=10, text=4))
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    expected = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    found = transformer_shapes(model)
    assert nn.get_partition_spec(found) == nn.get_partition_spec(expected)
    assert nn.unbox(found) == nn.unbox(expected)
