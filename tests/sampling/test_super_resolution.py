"""Greedy runs at true length end in the official codes; windows that are sampled several times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import official
import reference
from cogview_jax.interop.official.positions import sampling_positions
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.decode import generate, row_seeds, sample_keys
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.sampling.super_resolution import upsampled_codes
from cogview_jax.sampling.windows import WindowPlan, released_head
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary

GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture(scope="module")
def table(fixtures):
    return np.load(fixtures / "greedy_runs.npz")


@pytest.fixture(scope="module")
def released(fixtures):
    model, params = official.transformer(fixtures, "transformer_long")
    return model, unstack_layers(params)


def test_text_to_image_ends_in_the_official_codes(fixtures, released, table):
    """With a longer prompt beside it, padding on its left and the cache shared with another row."""
    model, layers = released
    vocabulary, prompt = official.vocabulary(fixtures), table["text2image:text"].astype(np.int32)
    other = np.insert(prompt, 2, [vocabulary.text_start] * 3)
    width = len(other)
    tokens = np.stack([np.pad(prompt, (3, 0)), other])
    valid = np.arange(width) >= np.array([[3], [0]])
    codes = generate(
        layers,
        tokens,
        valid,
        sample_keys(0, ["a", "b"], [0, 0]),
        row_settings([GREEDY] * 2),
        model=model,
        count=len(table["text2image:codes"]),
        first=0,
        last=vocabulary.codes,
    )
    np.testing.assert_array_equal(codes[0], table["text2image:codes"])
    assert not np.array_equal(codes[0], codes[1])


def test_nine_windows_end_in_the_official_codes(fixtures, released, table):
    model, layers = released
    vocabulary, prompt = official.vocabulary(fixtures), table["text2image:text"].astype(np.int32)
    codes = table["text2image:codes"]
    grid = int(len(codes) ** 0.5)
    done = []

    def head(i, source):
        row = released_head(prompt, source, "BASE", vocabulary)
        return row, sampling_positions([*row, -1], vocabulary)[0]

    result = upsampled_codes(
        layers,
        head,
        len(prompt) + 261,
        codes.reshape(1, grid, grid),
        row_seeds(0, ["a"], [0]).each(lambda seeds: seeds[:, None]),
        plan=WindowPlan(),
        model=model,
        last=vocabulary.codes,
        config=GREEDY,
        on_window=lambda: done.append(1),
    )
    np.testing.assert_array_equal(result[0], table["magnify:codes"])
    assert sum(done) == 9


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_later_windows_continue_the_candidate_that_was_chosen(attention):
    """Always the last of three: what is sampled where there is only that one."""
    vocabulary = Vocabulary(codes=40, text=5)
    layout = make_layout(LayoutConfig("super_resolution", 0, 4), vocabulary)
    plan = WindowPlan(3, 2, 1, ((0, 0, 3), (0, 1, 4), (1, 0, 4), (1, 1, 4)))
    sizes = {"pivots": 32, "window": 16} if attention == "sparse" else {}
    config = TransformerConfig(layers=1, width=32, heads=2, attention=attention, **sizes)
    model = Transformer(config, vocabulary.size, layout.positions, vocabulary=vocabulary)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *[jnp.zeros((1, 1), jnp.int32)] * 2)
    layers = unstack_layers(reference.random_like(unbox(shapes["params"]), 0))
    codes = np.random.default_rng(0).integers(0, 40, (2, 3, 3))
    keys = row_seeds(0, [*"aaabbb"], [0, 1, 2] * 2).each(lambda seeds: seeds.reshape(2, 3))
    seen = []

    def head(i, source):
        row = layout.tokens({"text": [], "source": source})
        return row, layout.positions_of(row)

    def last(window, sampled):
        seen.append(sampled)
        return np.array([2, 2])

    def larger(keys, choose=None, parallel_window=0):
        return upsampled_codes(
            *(layers, head, layout.prompt_length("image"), codes, keys),
            plan=plan,
            model=model,
            last=40,
            config=SamplingConfig(temperature=1.0, parallel_window=parallel_window),
            choose=choose,
        )

    found = larger(keys, last)
    np.testing.assert_array_equal(found, larger(keys.each(lambda seeds: seeds[:, 2:])))
    assert not np.array_equal(found, larger(keys.each(lambda seeds: seeds[:, :1])))
    for window, sampled in zip(plan.windows, seen, strict=True):
        assert sampled.shape == (2, 3, *window.known.shape)
        np.testing.assert_array_equal(sampled[:, 0, window.known], sampled[:, 2, window.known])
        assert not np.array_equal(sampled[:, 0], sampled[:, 2])
    if attention == "dense":
        np.testing.assert_array_equal(larger(keys, last, parallel_window=5), found)


def test_margins_are_those_of_the_official_runs(fixtures, table):
    """How sure each choice was: the whole pass over the finished sequences tells it again."""
    model, params = official.transformer(fixtures, "transformer_long")
    vocabulary, prompt = official.vocabulary(fixtures), table["text2image:text"]

    @jax.jit
    def top_two(params, tokens, positions):
        hidden = model.apply({"params": params}, tokens[None], positions[None])[0]
        logits = model.apply({"params": params}, hidden, 0, vocabulary.codes, method=model.logits)
        return jax.lax.top_k(jax.nn.log_softmax(logits), 2)[0]

    def margins(tokens, positions):
        best = np.asarray(top_two(params, tokens, positions))
        return best[:, 0] - best[:, 1]

    codes = table["text2image:codes"]
    row = np.concatenate([prompt, codes])[:-1]
    found = margins(row, np.arange(len(row)))[len(prompt) - 1 :]
    np.testing.assert_allclose(found, table["text2image:margins"], atol=2e-4)

    side = int(len(codes) ** 0.5)
    source, target = codes.reshape(side, side), table["magnify:codes"]
    found = []
    for window in WindowPlan(grid=side).windows:
        head = released_head(prompt, source[window.source].ravel(), "BASE", vocabulary)
        places = sampling_positions([*head, -1], vocabulary)[0]
        cells = target[window.target].ravel()
        row = np.concatenate([head, cells])[:-1]
        onward = places[-1] + 1 + np.arange(cells.size - 1)
        of_cells = margins(row, np.concatenate([places, onward]))[len(head) - 1 :]
        found.append(np.asarray(of_cells)[~window.known.ravel()])
    np.testing.assert_allclose(np.concatenate(found), table["magnify:margins"], atol=2e-4)
