"""Running layer by layer over the form for decoding computes what the scanned stack does."""

import dataclasses

import jax
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
from cogview_jax.models.transformer import (
    Transformer,
    logits_of,
    whole_forward,
    without_blocks,
)
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(codes=64, text=29)
DENSE = TransformerConfig(layers=2, width=32, heads=4, remat="none")
CONFIGS = {
    "dense": DENSE,
    "official": dataclasses.replace(
        DENSE, pb_relax_attention=False, embedding_gradient=1.0, compat="official"
    ),
    "sparse": dataclasses.replace(DENSE, attention="sparse", window=4, window_blocks=2, pivots=6),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    return Transformer(CONFIGS[request.param], VOCABULARY.size, 24, vocabulary=VOCABULARY)


@pytest.fixture
def params(model):
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    return reference.random_like(unbox(shapes), 0)


def test_it_is_what_the_scanned_stack_computes(model, params):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY.size, (3, 13))
    positions = np.broadcast_to(np.arange(13), tokens.shape)
    scan = jax.jit(lambda params, rows, at: model.apply({"params": params}, rows, at))
    expected, layers = scan(params, tokens, positions), unstack_arrays(stacked_arrays(params))
    hidden = whole_forward(model, layers, tokens, positions)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    some = logits_of(without_blocks(layers), hidden, model=model, first=3, last=70)
    np.testing.assert_allclose(some, hidden @ params["word_embedding"][3:70].T, atol=1e-5)
    # With the mask, each row is what it is alone.
    together = whole_forward(model, layers, tokens, positions, np.ones(tokens.shape, bool))
    for i in range(3):
        alone = scan(params, tokens[i : i + 1], positions[:1])
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


def test_arrays_one_by_one_take_the_form_of_all_at_once(params):
    layers = unstack_arrays(reversed(list(stacked_arrays(params))))
    expected = prepare_decode_params(unstack_layers(params))
    assert jax.tree.structure(layers) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, layers, expected)
