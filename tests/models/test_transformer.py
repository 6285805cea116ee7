"""The stack equals its plain form: whole, padded, cached and recomputed; sizes and init."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
from cogview_jax.models.attention import causal_mask
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.models.transformer import Transformer, cached_forward, empty_cache
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.layout import left_padded

CONFIG = TransformerConfig(layers=2, width=32, heads=4, dropout=0.1, remat="none")
VOCABULARY, POSITIONS = 41, 24
MODEL = Transformer(CONFIG, VOCABULARY, POSITIONS)
LENGTHS = (14, 5, 9)
KEY = jax.random.key(5, impl="rbg")  # compiles faster than the default


def shapes(model):
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"])


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, positions, mask=None):
    hidden = model.apply({"params": params}, tokens, positions, mask)
    return model.apply({"params": params}, hidden, method=model.logits)


@functools.partial(jax.jit, static_argnums=0)
def continued(model, layers, tokens, positions, valid, cache, index):
    hidden, cache = cached_forward(model, layers, tokens, positions, valid, cache, index)
    return model.apply({"params": layers}, hidden, method=model.logits), cache


@functools.partial(jax.jit, static_argnums=0)
def dropped(model, params, tokens):
    return model.apply({"params": params}, tokens, tokens, rngs={"dropout": KEY})


@pytest.fixture(scope="module")
def params():
    return reference.random_like(shapes(MODEL), seed=0)


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(1)
    return [generator.integers(0, VOCABULARY, length).astype(np.int32) for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(params, rows):
    """The logits of each row by itself, without padding, in float64."""
    return [reference.transformer(params, CONFIG, row) for row in rows]


@pytest.fixture(scope="module")
def batch(rows):
    """The tokens and positions of the rows, padded on the right with token 0."""
    tokens = np.zeros((len(rows), max(LENGTHS)), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.broadcast_to(np.arange(max(LENGTHS)), tokens.shape)


def test_equals_the_plain_form_whatever_is_padded_on_the_right(params, rows, expected, batch):
    tokens, positions = batch
    for filling in (0, VOCABULARY - 1):
        filled = np.where(positions < np.array(LENGTHS)[:, None], tokens, filling)
        result = logits(MODEL, params, filled, positions)
        for i, row in enumerate(rows):
            np.testing.assert_allclose(result[i, : len(row)], expected[i], atol=1e-5)


def test_equals_the_plain_form_with_padding_on_the_left(params, rows, expected):
    tokens, valid = left_padded(rows, max(LENGTHS))
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    mask = causal_mask(max(LENGTHS)) & valid[:, None, None, :]
    for filling in (0, VOCABULARY - 1):
        result = logits(MODEL, params, np.where(valid, tokens, filling), positions, mask)
        assert np.isfinite(result).all()
        for i, row in enumerate(rows):
            np.testing.assert_allclose(result[i, -len(row) :], expected[i], atol=1e-5)


def test_positions_are_looked_up_and_not_counted(params, rows):
    row = rows[0]
    positions = np.random.default_rng(2).integers(0, POSITIONS, len(row))
    result = logits(MODEL, params, row[None], positions[None])
    expected = reference.transformer(params, CONFIG, row, positions)
    np.testing.assert_allclose(result[0], expected, atol=1e-5)


def test_a_later_token_never_changes_earlier_logits(params, batch):
    tokens, positions = batch
    before = logits(MODEL, params, tokens, positions)
    for t in (1, 7, 13):
        changed = tokens.copy()
        changed[:, t] = (changed[:, t] + 1) % VOCABULARY
        after = logits(MODEL, params, changed, positions)
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert (np.abs(before[:, t:] - after[:, t:]).max(axis=(1, 2)) > 1e-3).all()


def test_causal_mask_by_hand():
    assert causal_mask(3).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_cached_decoding_equals_the_whole_pass(params, rows, expected):
    """Prompts of unequal length are padded on the left; then come one token, three and one.

    The cache starts with garbage, since no query sees what has not been written.
    """
    given, steps = (9, 0, 4), (1, 3, 1)  # tokens of each row in the prompt; each has 5 more
    longest, layers = max(given), unstack_layers(params)
    prompts = [row[:count] for row, count in zip(rows, given, strict=True)]
    tokens, valid = left_padded(prompts, longest)
    positions = np.cumsum(valid, axis=1) - 1
    cache_mask = np.concatenate([valid, np.ones((len(rows), sum(steps)), bool)], axis=1)
    cache = jax.tree.map(lambda x: x + 1e3, empty_cache(MODEL, len(rows), cache_mask.shape[1]))
    result, cache = continued(MODEL, layers, tokens, np.maximum(positions, 0), cache_mask, cache, 0)
    pieces, done = [result], 0
    for count in steps:
        offset = np.array(given)[:, None] + done + np.arange(count)
        following = np.stack([row[at] for row, at in zip(rows, offset, strict=True)])
        result, cache = continued(
            MODEL, layers, following, offset, cache_mask, cache, longest + done
        )
        pieces.append(result)
        done += count
    result = np.concatenate(pieces, axis=1)
    for i in range(len(rows)):
        np.testing.assert_allclose(result[i, -given[i] - done :], expected[i], atol=1e-5)


def test_rows_at_different_slots_equal_the_whole_pass(params, rows, expected):
    """Row i begins i steps after the first; until then it writes what its own token replaces."""
    layers, count = unstack_layers(params), max(LENGTHS)
    mask, found = np.ones((len(rows), count), bool), [[] for _ in rows]
    cache = jax.tree.map(lambda x: x + 1e3, empty_cache(MODEL, len(rows), count))
    for step in range(count + len(rows) - 1):
        index = np.clip(step - np.arange(len(rows)), 0, np.array(LENGTHS) - 1)
        token = np.stack([row[at] for row, at in zip(rows, index, strict=True)])[:, None]
        result, cache = continued(MODEL, layers, token, index[:, None], mask, cache, index)
        for i, at in enumerate(index):
            found[i][at:] = [result[i, 0]]
    for i in range(len(rows)):
        np.testing.assert_allclose(np.stack(found[i]), expected[i], atol=1e-5)


def test_a_part_of_the_head_is_a_slice_of_all(params):
    hidden = np.random.default_rng(3).standard_normal((2, 3, CONFIG.width)).astype(np.float32)

    def head(*part):
        return MODEL.apply({"params": params}, hidden, *part, method=MODEL.logits)

    np.testing.assert_allclose(head(5, 20), head()[..., 5:20], atol=1e-5)
    np.testing.assert_allclose(head(), hidden @ params["word_embedding"].T, atol=1e-5)


def loss(model, params, tokens, positions, rngs=None, head=None):
    """Computes the cross-entropy of the next token; the head may have other parameters."""
    hidden = model.apply({"params": params}, tokens, positions, rngs=rngs)
    scores = model.apply({"params": head or params}, hidden, method=model.logits)
    return optax.softmax_cross_entropy_with_integer_labels(scores[:, :-1], tokens[:, 1:]).mean()


def test_embedding_gradient_shares_what_comes_through_the_layers_and_only_that(params, batch):
    def gradients(share):
        config = dataclasses.replace(CONFIG, embedding_gradient=share)
        model = dataclasses.replace(MODEL, config=config)
        step = jax.jit(
            jax.value_and_grad(lambda below, head: loss(model, below, *batch, head=head), (0, 1))
        )
        value, (below, head) = step(params, params)
        return value, below.pop("word_embedding"), below, head["word_embedding"]

    value, words, others, head = gradients(1.0)
    same_value, shared_words, same_others, same_head = gradients(0.1)
    assert float(same_value) == pytest.approx(float(value), rel=1e-6)
    assert np.abs(words).max() > 1e-3
    np.testing.assert_allclose(shared_words, 0.1 * words, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(same_head, head, rtol=1e-4, atol=1e-7)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, same_others, others)


@pytest.fixture(scope="module")
def training(params, batch):
    """A function from remat and unroll to the value and the gradients, with dropout."""

    @functools.cache
    def run(remat, unroll):
        config = dataclasses.replace(CONFIG, remat=remat, unroll=unroll)
        model = dataclasses.replace(MODEL, config=config)
        step = jax.jit(jax.value_and_grad(lambda p, rngs: loss(model, p, *batch, rngs=rngs)))
        return step(params, {"dropout": KEY})

    return run


@pytest.mark.parametrize(("remat", "unroll"), [("full", 1), ("none", 2)])
def test_recomputation_and_unrolling_change_no_value_and_no_gradient(training, remat, unroll):
    plain, other = training("none", 1), training(remat, unroll)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, other)


@pytest.mark.parametrize(("where", "kinds"), [("layers", 3), ("embeddings", 2)])
def test_dropout_differs_by_layer_row_and_position(where, kinds):
    """Each layer adds 1 to each unit, or embeddings are 1, so units count the masks that kept them.

    The final norm keeps the order. If the masks of both layers were equal, a unit would count 0 or
    2.
    """
    config = dataclasses.replace(CONFIG, dropout=0.5, sandwich_ln=False)
    model = dataclasses.replace(MODEL, config=config)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes(model))
    params["final_norm"]["scale"] += 1
    if where == "layers":
        params["blocks"]["block"]["mlp"]["down"]["bias"] += 1
    else:
        params["word_embedding"] += 1
    tokens = jnp.zeros((4, 6), jnp.int32)
    hidden = dropped(model, params, tokens)
    rows = np.round(np.asarray(hidden), 4).reshape(-1, CONFIG.width)
    assert [len(set(row)) for row in rows] == [kinds] * 24
    assert len({row.tobytes() for row in rows}) == 24


def test_layers_start_from_the_deviations_of_the_paper():
    model = Transformer(TransformerConfig(layers=2, width=128, heads=2), 500, 400)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = unbox(jax.jit(model.init)(jax.random.key(0), tokens, tokens)["params"])
    first, second = unstack_layers(params)["blocks"]
    for table in ("word_embedding", "position_embedding"):
        assert np.std(params[table]) == pytest.approx(0.02, rel=0.02)
    for layer in (first, second):
        inner = {"qkv": layer["attention"]["qkv"], "up": layer["mlp"]["up"]}
        outer = {"out": layer["attention"]["out"], "down": layer["mlp"]["down"]}
        for parts, deviation in ((inner, 0.02), (outer, 0.02 / 4**0.5)):
            for part in parts.values():
                assert np.std(part["kernel"]) == pytest.approx(deviation, rel=0.02)
                assert np.abs(np.mean(part["kernel"])) < deviation / 30
                assert not part["bias"].any()
        for norm in ("attention_in", "attention_out", "mlp_in", "mlp_out"):
            assert (layer[norm]["scale"] == 1).all()
            assert not layer[norm]["bias"].any()
    assert (first["mlp"]["up"]["kernel"] != second["mlp"]["up"]["kernel"]).all()


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({}, 3_928_849_920),  # the model of the paper, which is the default
        (
            {"layers": 12, "width": 1024, "heads": 16},
            211_958_784,
        ),  # the model of the official tutorial
    ],
)
def test_parameters_are_as_many_as_in_the_official_models(sizes, count):
    model = Transformer(TransformerConfig(**sizes), 58240, 1089)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model))) == count


def test_bfloat16_arithmetic_stays_near_float32(params, batch):
    model = dataclasses.replace(MODEL, policy=policy("bfloat16"))
    exact, rounded = logits(MODEL, params, *batch), logits(model, params, *batch)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.std(rounded - exact) / np.std(exact) < 0.03
