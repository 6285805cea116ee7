"""The released transformer, value by value: what the official code computes from its weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

import official
from cogview_jax.models.attention import KeyValues, causal_mask
from cogview_jax.models.block import Block, make_norm
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.models.layernorm import LayerNorm
from cogview_jax.models.transformer import cached_forward, empty_cache

LOGITS = 1e-4  # absolute, as fixtures/README.md has it


@pytest.fixture(scope="module")
def released(fixtures):
    """(model, params) of the small official transformer."""
    return official.transformer(fixtures)


@pytest.fixture(scope="module")
def table(fixtures):
    return np.load(fixtures / "transformer_forward.npz")


def counted(tokens):
    return np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)


def logits(model, params, tokens, positions=None, mask=None):
    def run(params, tokens, positions, mask):
        hidden = model.apply({"params": params}, tokens, positions, mask)
        return model.apply({"params": params}, hidden, method=model.logits)

    positions = counted(tokens) if positions is None else positions
    mask = causal_mask(tokens.shape[1]) if mask is None else mask
    return np.asarray(jax.jit(run)(params, tokens, positions, mask))


def hidden_layers(model, params, tokens, mask=None):
    """The embeddings and the output of each layer, [layers + 1, B, T, D]."""
    mask = causal_mask(tokens.shape[1]) if mask is None else mask

    @jax.jit
    def run(layers):
        x = model.apply({"params": layers}, tokens, counted(tokens), method=model.embed)
        states = [x]
        for layer in layers["blocks"]:
            x, _ = Block(model.config, model.policy).apply({"params": layer}, x, mask)
            states.append(x)
        return jnp.stack(states)

    return np.asarray(run(unstack_layers(params)))


def test_logits_under_every_kind_of_mask_and_position(released, table):
    model, params = released
    tokens = table["tokens"]
    np.testing.assert_array_equal(table["position_ids"], counted(tokens))
    given = table["attention_mask"].astype(bool)
    np.testing.assert_array_equal(given[0, 0], causal_mask(tokens.shape[1]))
    sight = np.asarray(causal_mask(tokens.shape[1])).copy()
    sight[:, : int(table["sep"])] = True  # everybody sees the first `sep` positions
    cases = {
        "logits": {},
        "logits_sep": {"mask": sight},
        "logits_mask3": {"mask": table["mask3"].astype(bool)[:, None]},
        "logits_pos2": {"positions": table["position_ids2"]},
    }
    for name, arguments in cases.items():
        result = logits(model, params, tokens, **arguments)
        np.testing.assert_allclose(result, table[name], atol=LOGITS, rtol=0, err_msg=name)


def test_hidden_states_of_every_layer(released, table):
    result = hidden_layers(*released, table["tokens"])
    np.testing.assert_allclose(result, table["hidden_layers"], atol=LOGITS, rtol=0)


def test_the_first_layer_opened(released, fixtures):
    model, params = released
    table = np.load(fixtures / "transformer_layer0.npz")
    tokens = table["tokens"]
    layer = unstack_layers(params)["blocks"][0]
    x = model.apply({"params": params}, tokens, counted(tokens), method=model.embed)
    _, found = Block(model.config).apply(
        {"params": layer}, x, causal_mask(tokens.shape[1]), capture_intermediates=True
    )
    seen = found["intermediates"]

    def out(*path):
        node = seen
        for name in path:
            node = node[name]
        return np.asarray(node["__call__"][0])

    qkv = out("attention", "qkv")
    up = out("mlp", "up")
    states = hidden_layers(model, params, tokens)
    after_attention = x + out("attention_out")
    expected = {
        "input_layernorm_in": x,
        "input_layernorm_out": out("attention_in"),
        "qkv_in": out("attention_in"),
        "qkv_out": qkv.reshape(*qkv.shape[:2], -1),
        "dense_out": out("attention", "out"),
        "third_layernorm_in": out("attention", "out"),
        "third_layernorm_out": out("attention_out"),
        "post_attention_layernorm_in": after_attention,
        "post_attention_layernorm_out": out("mlp_in"),
        "h_to_4h_in": out("mlp_in"),
        "h_to_4h_out": up,
        "4h_to_h_in": jax.nn.gelu(up, approximate=True),
        "4h_to_h_out": out("mlp", "down"),
        "fourth_layernorm_in": out("mlp", "down"),
        "fourth_layernorm_out": out("mlp_out"),
        "final_layernorm_in": states[-1],
        "final_layernorm_out": model.apply({"params": params}, states[-1], method=model.normalise),
        "logits": logits(model, params, tokens),
    }
    # What the output projection reads is found back from what it gives: x = (y - b) W^-1.
    out_kernel, out_bias = layer["attention"]["out"]["kernel"], layer["attention"]["out"]["bias"]
    given_back = table["dense_in"] @ out_kernel + out_bias
    np.testing.assert_allclose(given_back, expected["dense_out"], atol=LOGITS, rtol=0)
    assert {*expected, "tokens", "dense_in"} == {*table}
    for name, value in expected.items():
        np.testing.assert_allclose(value, table[name], atol=LOGITS, rtol=0, err_msg=name)


CASES = ("normal", "tiny", "huge", "outlier_token", "outlier_value")


@pytest.mark.parametrize("case", CASES)
def test_layernorm_and_its_gradients(fixtures, case):
    table = np.load(fixtures / "layernorm.npz")
    x, params = table[f"{case}_x"], {"scale": table["weight"], "bias": table["bias"]}
    norm = LayerNorm("tensor", float(table["eps"]))
    y, back = jax.vjp(lambda params, x: norm.apply({"params": params}, x), params, x)
    grads, dx = back(table[f"{case}_dy"])
    np.testing.assert_allclose(y, table[f"{case}_y"], atol=2e-5, rtol=1e-5)
    for ours, name in ((dx, "dx"), (grads["scale"], "dweight"), (grads["bias"], "dbias")):
        expected = table[f"{case}_{name}"]
        largest = np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, atol=1e-4 * largest, rtol=0, err_msg=name)


def test_layernorm_of_zeros_is_not_a_number_there_and_finite_here(fixtures):
    table = np.load(fixtures / "layernorm.npz")
    params = {"params": {"scale": table["weight"], "bias": table["bias"]}}
    zeros = np.zeros_like(table["zeros_y"])
    np.testing.assert_array_equal(LayerNorm("tensor").apply(params, zeros), table["zeros_y"])
    for arguments in (("row", None), ("tensor", np.ones(zeros.shape[:2], bool))):
        y = LayerNorm(arguments[0]).apply(params, zeros, arguments[1])
        np.testing.assert_array_equal(y, np.broadcast_to(table["bias"], y.shape))


# ---- one outlier token, and what is remembered of earlier calls


def scaled(params, table):
    """The weights of the outlier case: one word embedding larger by `factor`."""
    words = np.array(params["word_embedding"])
    words[int(table["row"])] *= float(table["factor"])
    return {**params, "word_embedding": words}


@pytest.fixture(scope="module")
def outlier(fixtures, released):
    table = np.load(fixtures / "transformer_outlier.npz")
    model, params = released
    return model, scaled(params, table), table


def assert_others_equal(result, expected, table):
    """All but the scaled row's own logit, which is huge."""
    others = np.arange(expected.shape[-1]) != int(table["row"])
    np.testing.assert_allclose(result[..., others], expected[..., others], atol=LOGITS, rtol=0)


def test_an_outlier_reaches_every_token_of_the_batch(outlier):
    model, params, table = outlier
    tokens = table["tokens"]
    assert_others_equal(logits(model, params, tokens), table["logits"], table)
    last = hidden_layers(model, params, tokens)[-1]
    np.testing.assert_allclose(last, table["hidden_last"], atol=LOGITS, rtol=0)
    alone = logits(model, params, tokens[1:2])
    assert_others_equal(alone, table["logits_sample1_alone"], table)
    # Without the outlier beside it, sample 1 is another image.
    others = np.arange(alone.shape[-1]) != int(table["row"])
    assert np.abs(alone - table["logits"][1:2])[..., others].max() > 100 * LOGITS


def test_with_an_outlier_only_the_official_form_lets_later_tokens_change_earlier_ones(outlier):
    """Why compat is never trained with: one scaled token, moved in behind the others."""
    model, params, table = outlier
    tokens = np.array(table["tokens"][1:2])
    changed = tokens.copy()
    changed[:, -1] = int(table["row"])
    others = np.arange(model.vocab_size) != int(table["row"])

    def earlier(model):
        before, after = (logits(model, params, row)[:, :-1] for row in (tokens, changed))
        return np.abs(before - after)[..., others].max()

    assert earlier(model) > 100 * LOGITS
    for relax in (True, False):
        config = dataclasses.replace(model.config, compat="none", pb_relax_norm=relax)
        assert earlier(model.clone(config=config)) == 0


@functools.partial(jax.jit, static_argnums=0)
def remembering(model, layers, tokens, positions, memories, start):
    """The release's incremental call: it remembers hidden states, not keys and values.

    memories: [layers + 1, B, S, D], the inputs of each layer and the last one's output, of which
    the first `start` places are written, and zero where forgotten. Those of earlier calls are
    normalised together and projected anew in each. Returns logits [B, T, V] and the memories with
    the T new positions.
    """
    config = model.config
    slots, queries = jnp.arange(memories.shape[2]), start + jnp.arange(tokens.shape[1])
    forgotten = (memories[0] == 0).all(axis=(0, 2)) & (slots < start)
    mask = (slots <= queries[:, None]) & ~forgotten
    x = model.apply({"params": layers}, tokens, positions, method=model.embed)
    states = [x]
    for old, layer in zip(memories, layers["blocks"], strict=False):
        norm = make_norm(config, model.policy)
        # A value too small to matter: nothing but zeros would be divided by zero.
        old = norm.apply({"params": layer["attention_in"]}, old.at[0, 0, 0].add(1e-30))
        qkv = layer["attention"]["qkv"]
        projected = jnp.einsum("bmd,dcf->bmcf", old, qkv["kernel"]) + qkv["bias"]
        _, keys, values = rearrange(projected, "b m c (n h) -> c b n m h", n=config.heads)
        x, _ = Block(config).apply({"params": layer}, x, mask, KeyValues(keys, values), start)
        states.append(x)
    final = model.apply({"params": layers}, x, method=model.normalise)
    new = jax.lax.dynamic_update_slice(memories, jnp.stack(states), (0, 0, start, 0))
    return model.apply({"params": layers}, final, method=model.logits), new


def incrementally(model, params, tokens, chunks, keep):
    """Chunk by chunk with the newest `keep` positions remembered: logits, memories, lengths."""
    layers = unstack_layers(params)
    shape = (model.config.layers + 1, *tokens.shape, model.config.width)
    memories, results, kept, lengths, end = jnp.zeros(shape), [], [], [], 0
    for length in chunks:
        part = slice(end, end + length)
        result, memories = remembering(
            model, layers, tokens[:, part], counted(tokens)[:, part], memories, end
        )
        end += length
        oldest = max(0, end - keep)
        memories = memories.at[:, :, :oldest].set(0)
        results.append(np.asarray(result))
        kept.append(np.asarray(memories[:, :, oldest:end]))
        lengths.append(end - oldest)
    return np.concatenate(results, axis=1), kept, lengths


def test_incremental_calls_with_memories(released, fixtures):
    table = np.load(fixtures / "transformer_mems.npz")
    model, params = released
    tokens, prefill = table["tokens"], int(table["prefill"])
    chunks = [prefill] + [1] * (tokens.shape[1] - prefill)
    result, kept, lengths = incrementally(model, params, tokens, chunks, 2048)
    assert lengths == table["mem_lengths"].tolist()
    for ours, name in (
        (result, "logits"),
        (kept[0], "mems_after_prefill"),
        (kept[-1], "mems_final"),
    ):
        np.testing.assert_allclose(ours, table[name], atol=LOGITS, rtol=0, err_msg=name)
    chunk, keep = int(table["trunc_chunk"]), int(table["trunc_max_memory"])
    length = table["trunc_logits"].shape[1]
    result, kept, lengths = incrementally(
        model, params, tokens[:, :length], [chunk] * (length // chunk), keep
    )
    assert lengths == table["trunc_mem_lengths"].tolist()
    np.testing.assert_allclose(result, table["trunc_logits"], atol=LOGITS, rtol=0)
    np.testing.assert_allclose(kept[-1], table["trunc_mems_final"], atol=LOGITS, rtol=0)


def test_an_outlier_in_the_memories(outlier):
    model, params, table = outlier
    tokens, prefill = table["tokens"], int(table["prefill"])
    chunks = [prefill] + [1] * (tokens.shape[1] - prefill)
    result, _, _ = incrementally(model, params, tokens, chunks, 2048)
    assert_others_equal(result, table["logits_incremental"], table)


def test_the_key_value_cache_gives_the_logits_of_the_memories(released, fixtures):
    """What sampling uses: nothing is projected twice, and a row is normalised by itself."""
    table = np.load(fixtures / "transformer_mems.npz")
    model, params = released
    tokens, prefill = table["tokens"].astype(np.int32), int(table["prefill"])
    layers = unstack_layers(params)
    valid = np.ones(tokens.shape, bool)

    @jax.jit
    def advance(layers, part, at, cache, index):
        hidden, cache = cached_forward(model, layers, part, at, valid, cache, index)
        return model.apply({"params": layers}, hidden, method=model.logits), cache

    cache, start, results = empty_cache(model, *tokens.shape), 0, []
    for length in [prefill] + [1] * (tokens.shape[1] - prefill):
        part = slice(start, start + length)
        result, cache = advance(layers, tokens[:, part], counted(tokens)[:, part], cache, start)
        results.append(np.asarray(result))
        start += length
    result = np.concatenate(results, axis=1)
    np.testing.assert_allclose(result, table["logits"], atol=LOGITS, rtol=0)
