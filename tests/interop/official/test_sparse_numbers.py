"""The release's sparse attention, replayed: its functions, a training pass, decoding with memories.

Which tokens were pivots is recorded; drawing them is ours. In decoding the release lists all that
is seen: `Listed`.
"""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import official
import reference
from cogview_jax.models.attention import KeyValues, attention_scores, attention_weights
from cogview_jax.models.block import Block
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.models.sparse_attention import (
    KeyRegion,
    ThreeRegions,
    attend_regions,
    gather_positions,
    pivot_bias,
)
from cogview_jax.models.transformer import Transformer
from cogview_jax.training.cross_entropy import cross_entropy

FUNCTIONS, LOGITS, LOSSES, GRADIENTS = 1e-5, 1e-4, 1e-5, 1e-4


class Listed(NamedTuple):
    """Queries that see the listed places [B, K] up to their own, which are the last; -1 is none."""

    places: jax.Array
    first: jax.Array

    def attend(self, queries, cache, alpha, dtype, drop):
        own = self.first + jnp.arange(queries.shape[2])
        places = self.places[:, None, None, :]
        mask = (places >= 0) & (places <= own[:, None])
        keys, values = (gather_positions(x, jnp.maximum(self.places, 0)) for x in cache)
        return attend_regions(queries, [KeyRegion(keys, values, mask)], alpha, dtype, drop)


def keep(weights, number):
    return weights


@pytest.fixture(scope="module")
def functions(fixtures):
    return np.load(fixtures / "sparse_attention.npz")


@pytest.fixture(params=["a", "b"])
def case(request, functions):
    """Arrays of one number of pivots, and the attention they are for."""
    part = {
        name.removeprefix(f"{request.param}_"): functions[name]
        for name in functions.files
        if name.startswith(f"{request.param}_")
    }
    length = functions["q"].shape[2]
    pivots = part["pivot_idx"].astype(np.int32)
    bias = pivot_bias(length, pivots.shape[1])
    assert bias == pytest.approx(float(part["bias"]), abs=1e-7)
    regions = ThreeRegions(pivots, int(functions["window"]), int(functions["times"]), bias)

    def run(queries, keys, values):
        return regions.attend(queries, KeyValues(keys, values), 1.0, jnp.float32, keep)

    return part, regions, run


def test_training_attention_and_its_gradients(functions, case):
    part, _, run = case
    inputs = [functions[name] for name in "qkv"]
    result, back = jax.vjp(run, *inputs)
    np.testing.assert_allclose(result, part["out"], atol=FUNCTIONS)
    for gradient, name in zip(back(part["dout"]), ("dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(gradient, part[name], atol=FUNCTIONS, err_msg=name)


def test_who_may_be_seen_and_the_dense_equivalent(functions, case):
    part, regions, run = case
    window, times = regions.window, regions.window_blocks
    blocks = np.arange(functions["q"].shape[2]) // window
    np.testing.assert_array_equal(functions["rmask"], blocks[:, None] >= blocks + times)
    for row, eligible in zip(regions.pivots, part["pivot_mask"], strict=True):
        np.testing.assert_array_equal(functions["rmask"][:, row], eligible)
        far = row // window <= blocks[:, None] - times
        np.testing.assert_array_equal(far, eligible)
    for row, mask in zip(regions.pivots, part["dense_mask"], strict=True):
        ours = reference.sparse_mask(len(mask), row.tolist(), window, times)
        np.testing.assert_array_equal(ours, mask)
    queries, keys, values = (functions[name] for name in "qkv")
    scores = attention_scores(queries, keys, 1.0)
    weights = attention_weights(scores, part["dense_mask"][:, None] > 0, 1.0)
    dense = jnp.einsum("bnts,bnsh->bnth", weights, values)
    np.testing.assert_allclose(dense, part["dense_out"], atol=FUNCTIONS)
    # Without the bias, ours equals dense attention whatever the number of pivots.
    plain = regions.replace(bias=0.0)
    ours = plain.attend(queries, KeyValues(keys, values), 1.0, jnp.float32, keep)
    np.testing.assert_allclose(ours, part["dense_out"], atol=FUNCTIONS)
    assert np.allclose(run(queries, keys, values), dense, atol=1e-3) == (regions.bias == 0)


def test_attention_in_inference(functions):
    length = functions["q"].shape[2]
    cache = KeyValues(functions["k"], functions["v"])
    counts = [int(name[3:-4]) for name in functions.files if re.fullmatch(r"inf\d+_out", name)]
    assert min(counts) == 1 < max(counts)
    for count in counts:
        places = functions[f"inf{count}_pw_idx"].astype(np.int32)
        queries = functions["q"][:, :, -count:]
        result = Listed(places, length - count).attend(queries, cache, 1.0, jnp.float32, keep)
        np.testing.assert_allclose(result, functions[f"inf{count}_out"], atol=FUNCTIONS)


@pytest.fixture(scope="module")
def released(fixtures):
    return official.transformer(fixtures)


def positions(tokens):
    return np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)


def test_training_of_a_model(fixtures, released):
    table = np.load(fixtures / "sparse_model_training.npz")
    model, params = released
    window, times, count = (int(table[name]) for name in ("window", "times", "num_pivot"))
    config = dataclasses.replace(
        model.config, attention="sparse", window=window, window_blocks=times, pivots=count
    )
    model = dataclasses.replace(model, config=config)
    tokens, targets = table["text"][:, :-1], table["text"][:, 1:]
    mask = table["loss_mask_in"][:, 1:]
    image = tokens < official.vocabulary(fixtures).codes  # the input decides, not the target
    pivots = table["pivot_idx"].astype(np.int32)
    seen = ThreeRegions(pivots, window, times, pivot_bias(tokens.shape[1], count))
    for ours, theirs in zip(pivots, table["pivot_attention_mask"], strict=True):
        gathered = [table["rmask"][:, row] for row in ours]
        np.testing.assert_array_equal(gathered, theirs)

    def loss(params):
        hidden = model.apply({"params": params}, tokens, positions(tokens), seen)
        logits = model.apply({"params": params}, hidden, method=model.logits)
        entropies = cross_entropy(logits, targets)
        of_text, of_image = mask * ~image, mask * image
        text_sum, image_sum = jnp.sum(entropies * of_text), jnp.sum(entropies * of_image)
        total = (5 * text_sum + image_sum) / jnp.sum(5 * of_text + of_image)
        # An image token without a target counts among those the release divides by.
        return total, (logits, text_sum / of_text.sum(), image_sum / image.sum())

    (total, (logits, text, image)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params
    )
    np.testing.assert_allclose(logits, table["logits"], atol=LOGITS, rtol=0)
    for ours, name in ((total, "loss"), (image, "img_loss"), (text, "txt_loss")):
        np.testing.assert_allclose(ours, table[name], atol=LOSSES, rtol=0, err_msg=name)
    expected = table["grad:transformer.layers.0.attention.query_key_value.weight"]
    ours = gradient["blocks"]["block"]["attention"]["qkv"]["kernel"][0]
    ours = np.asarray(ours).reshape(len(ours), -1).T
    np.testing.assert_allclose(ours, expected, atol=GRADIENTS * np.abs(expected).max(), rtol=0)


def test_decoding_of_a_model_with_an_ordinary_cache(fixtures, released):
    table = np.load(fixtures / "sparse_model_inference.npz")
    model, params = released
    tokens, lengths = table["tokens"], table["key_lengths"]
    layers = unstack_layers(params)

    @jax.jit
    def advance(layers, tokens, positions, cache, places, first):
        x = model.apply({"params": layers}, tokens, positions, method=Transformer.embed)
        block, written = Block(model.config, model.policy), []
        for layer, kept, listed in zip(layers["blocks"], cache, places, strict=True):
            x, kept = block.apply({"params": layer}, x, Listed(listed, first), kept, first)
            written.append(kept)
        x = model.apply({"params": layers}, x[:, -1:], method=Transformer.normalise)
        return model.apply({"params": layers}, x[:, 0], method=Transformer.logits), written

    shape = (len(tokens), model.config.heads, tokens.shape[1], model.config.head_width)
    cache = [KeyValues(jnp.zeros(shape), jnp.zeros(shape)) for _ in layers["blocks"]]
    done = 0
    for call, length in enumerate(lengths):
        part = slice(done, int(length))
        places = table["pw_idx"][call].astype(np.int32)
        result, cache = advance(
            layers, tokens[:, part], positions(tokens)[:, part], cache, places, done
        )
        np.testing.assert_allclose(result, table["logits_last"][call], atol=LOGITS, rtol=0)
        done = int(length)
