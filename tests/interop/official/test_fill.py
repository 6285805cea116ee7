"""Queries with gaps are filled as the official sampler fills them, draw by draw."""

import jax
import numpy as np
import pytest

import official
from cogview_jax.interop.official.fill import FillStep, fill, fill_steps, filtered, seeded_choice
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.filters import keep_top_k, keep_top_p
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary

SHARES = 2e-5  # absolute, as fixtures/README.md has it
PHASES = (
    *("start", "after_boi1", "in_image1", "after_eoi1", "caption", "before_boi2"),
    *("after_boi2", "after_eoi2", "boi3_is_ignored", "eoi3_is_ignored"),
)


@pytest.fixture(scope="module")
def vocabulary(fixtures):
    return official.vocabulary(fixtures)


def settings(temperature, top_k, top_p=0.0):
    """The official 0 of top-p is our 1: all tokens."""
    return SamplingConfig(float(temperature), int(top_k), float(top_p) or 1.0)


@pytest.mark.parametrize("phase", PHASES)
def test_distributions_of_every_phase(fixtures, vocabulary, phase):
    """Some rows have ties; where the official top-p cuts through some, ours keeps all."""
    table = np.load(fixtures / "sampling_filters.npz")
    assert {f"context:{name}" for name in PHASES} == {n for n in table if n.startswith("context")}
    (place,) = fill_steps([*table[f"context:{phase}"].tolist(), -1], vocabulary)
    for setting, expected in zip(table["settings"], table[f"probs:{phase}"], strict=True):
        config = settings(*setting)
        shares = np.asarray(filtered(table["logits"], config, place.first, place.last))
        for logits, ours, official_row in zip(table["logits"], shares, expected, strict=True):
            cut = config.top_p < 1 and (ours > 0).sum() > (official_row > 0).sum()
            if cut:
                kept = official_row > 0
                (level,) = set(logits[(ours > 0) & ~kept])
                assert level in logits[kept], "only equals of what is kept are cut"
                ours = np.where(kept, ours, 0) / ours[kept].sum()
            np.testing.assert_allclose(ours, official_row, atol=SHARES)


def test_distributions_over_the_real_vocabulary(fixtures):
    table = np.load(fixtures / "sampling_filters_full.npz")
    logits = (table["logits_x64"] / np.float32(64))[None]
    config = settings(table["temperature"], table["top_k"])
    for phase in ("image", "text", "start"):
        (place,) = fill_steps([*table[f"{phase}_context"].tolist(), -1], Vocabulary())
        (shares,) = np.asarray(filtered(logits, config, place.first, place.last))
        ids = np.flatnonzero(shares)
        np.testing.assert_array_equal(ids, table[f"{phase}_ids"])
        np.testing.assert_allclose(shares[ids], table[f"{phase}_probs"], atol=SHARES)


def test_filters_alone(fixtures):
    table = np.load(fixtures / "sampling_filters.npz")
    direct = [name for name in table if name.startswith("direct_topk:k")]
    assert len(direct) > 2
    for name in direct:
        k = int(name.removeprefix("direct_topk:k"))
        np.testing.assert_array_equal(keep_top_k(table["logits"], k), table[name])
    nucleus = [name for name in table if name.startswith("direct_topp_")]
    for name in nucleus:
        p = float(name.removeprefix("direct_topp_"))
        np.testing.assert_array_equal(keep_top_p(table["logits"][:1], p), table[name])


@pytest.fixture(scope="module")
def released(fixtures):
    model, params = official.transformer(fixtures)
    return model, unstack_layers(params)


TRACES = ("text2image", "low_level_sr", "image2text", "mixed_given_and_generated")


@pytest.mark.parametrize("name", TRACES)
def test_a_replayed_run(fixtures, vocabulary, released, name):
    """Every distribution of a recorded run, its draws being forced, and what comes out."""
    table = np.load(fixtures / "sampling_traces.npz")

    def field(what):
        return table[f"{name}:{what}"]

    step = 0

    def replay(shares, samples):
        nonlocal step
        rows = int(field("rows_per_step")[step])
        assert len(shares) == rows
        for ours, ids, expected in zip(
            shares, field("prob_ids")[step], field("prob_values")[step], strict=False
        ):
            recorded = np.zeros_like(ours)
            recorded[ids[ids >= 0]] = expected[ids >= 0]
            np.testing.assert_allclose(ours, recorded, atol=SHARES)
        step += 1
        return field("picked")[step - 1][:samples]

    config = settings(field("temperature"), field("top_k"))
    result = fill(*released, field("seq"), vocabulary, config, replay)
    np.testing.assert_array_equal(result, field("output"))
    assert step == len(field("rows_per_step"))


@pytest.mark.parametrize("name", TRACES)
def test_calls_are_planned_as_the_official_sampler_makes_them(fixtures, vocabulary, name):
    table = np.load(fixtures / "sampling_traces.npz")
    draws = fill_steps(table[f"{name}:seq"], vocabulary)
    counts = [draw.place - draw.fed for draw in draws]
    np.testing.assert_array_equal(counts, table[f"{name}:call_token_counts"])
    np.testing.assert_array_equal([d.fed for d in draws], table[f"{name}:call_mem_lengths"])


def test_a_plan_by_hand():
    """Codes 0-9, pieces 10-14, commands from 15: [BOI1] 16, [EOI1] 19, [ROI1] 22; 128 ids."""
    assert fill_steps([22, -1, 11, 16, -2, -2, 19, -1], Vocabulary(10, 5)) == [
        FillStep(place=1, fed=0, samples=1, first=10, last=128),
        FillStep(place=4, fed=1, samples=2, first=0, last=10),
        FillStep(place=5, fed=4, samples=2, first=0, last=10),
        FillStep(place=7, fed=5, samples=1, first=10, last=15),
    ]


def test_greedy_filling_equals_taking_the_likeliest_of_whole_passes(vocabulary, released):
    model, layers = released
    query = [vocabulary.command("ROI1"), vocabulary.text_start, vocabulary.command("BOI1")]
    query += [-1, -1, 3, -1]
    result = fill(model, layers, query, vocabulary, SamplingConfig(0.0), seeded_choice(0))
    for place in (3, 4, 6):
        tokens = result[:, :place]
        hidden = model.apply({"params": stacked(layers)}, tokens, np.arange(place)[None])
        logits = model.apply({"params": layers}, hidden[:, -1], method=model.logits)
        assert result[0, place] == np.argmax(logits[0, : vocabulary.codes])
    assert result[0, 5] == 3


def stacked(layers):
    blocks = jax.tree.map(lambda *leaves: np.stack(leaves), *layers["blocks"])
    return {**layers, "blocks": {"block": blocks}}


def test_draws_follow_the_seed_and_samples_differ(vocabulary, released):
    query = [vocabulary.command("BOI1")] + [-4] * 6
    arguments = (*released, query, vocabulary, SamplingConfig(1.0, 0))
    first = fill(*arguments, seeded_choice(1))
    np.testing.assert_array_equal(first, fill(*arguments, seeded_choice(1)))
    assert len({tuple(row) for row in first.tolist()}) == 4
    assert not np.array_equal(first, fill(*arguments, seeded_choice(2)))


def test_queries_that_cannot_be_filled_are_refused(vocabulary, released):
    model, layers = released
    config = SamplingConfig()
    with pytest.raises(InputError, match="begins with a given token"):
        fill(model, layers, [-1, 3], vocabulary, config, seeded_choice(0))
    with pytest.raises(InputError, match=f"position {model.positions}; the model has"):
        query = [3] * (model.positions + 1) + [-1]
        fill(model, layers, query, vocabulary, config, seeded_choice(0))
