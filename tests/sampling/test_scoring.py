"""Scores of texts are those of the official ranking, and of the slow form."""

import numpy as np
import pytest

import official
import reference
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.sampling.scoring import token_log_probs

SCORES = 5e-4  # absolute, as fixtures/README.md has it


def log_probs(model, params, rows, count, first):
    positions = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    scores = token_log_probs(
        unstack_layers(params),
        rows.astype(np.int32),
        positions,
        model=model,
        count=count,
        first=first,
        last=model.vocab_size,
    )
    return np.asarray(scores)


@pytest.mark.parametrize(
    ("case", "weights"), [("small", "transformer"), ("full", "transformer_long")]
)
def test_scores_are_those_of_the_official_ranking(fixtures, case, weights):
    table = np.load(fixtures / "inverse_prompt_score.npz")
    model, params = official.transformer(fixtures, weights)
    rows, expected = table[f"{case}_seqs"], table[f"{case}_token_log_probs"]
    codes = official.vocabulary(fixtures).codes
    count = expected.shape[1]
    scores = log_probs(model, params, rows, count, codes)
    np.testing.assert_allclose(scores, expected, atol=SCORES)
    np.testing.assert_allclose(scores.sum(axis=1), table[f"{case}_scores"], atol=SCORES)
    if case == "small":
        alone = np.concatenate([log_probs(model, params, row[None], count, codes) for row in rows])
        expected = table["small_scores_one_by_one"]
        np.testing.assert_allclose(alone.sum(axis=1), expected, atol=SCORES)


def test_logits_behind_the_scores(fixtures):
    table = np.load(fixtures / "inverse_prompt_score.npz")
    model, params = official.transformer(fixtures)
    rows = table["small_seqs"][:, :-1]
    positions = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    hidden = model.apply({"params": params}, rows, positions)
    count = table["small_logits_tail"].shape[1]
    logits = model.apply({"params": params}, hidden[:, -count:], method=model.logits)
    np.testing.assert_allclose(logits, table["small_logits_tail"], atol=1e-4)


def test_scores_equal_the_slow_form(fixtures):
    """Our own arithmetic: each row's own maximum, float64, a plain softmax over what may follow."""
    model, params = official.transformer(fixtures)
    config = official.own_arithmetic(model.config)
    model = model.clone(config=config)
    rows = np.random.default_rng(0).integers(0, model.vocab_size, (2, 9))
    first = 64 if model.vocab_size > 128 else 1
    rows[:, -3:] = rows[:, -3:] % (model.vocab_size - first) + first
    scores = log_probs(model, params, rows, 3, first)
    for row, ours in zip(rows, scores, strict=True):
        logits = reference.transformer(params, config, row[:-1])[-3:, first:]
        shares = [reference.softmax(line) for line in logits]
        expected = [np.log(share[t - first]) for share, t in zip(shares, row[-3:], strict=True)]
        np.testing.assert_allclose(ours, expected, atol=2e-5)
