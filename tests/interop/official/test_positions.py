"""Position ids around [ROI2] in sampling, against the release's."""

import json

import numpy as np
import pytest

from cogview_jax.interop.official.positions import sampling_positions
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def tables(fixtures):
    return json.loads((fixtures / "position_ids.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def sizes(fixtures):
    return json.loads((fixtures / "config.json").read_text())["config"]


@pytest.fixture(scope="module")
def vocabulary(sizes):
    return Vocabulary(sizes["n_img"], sizes["n_txt"])


def test_sampling_restarts_after_the_last_given_one(tables, vocabulary):
    for case in tables["sampling"]:
        calls = [call.tolist() for call in sampling_positions(case["seq"], vocabulary)]
        assert calls == case["position_ids_per_call"], case["case"]
        assert [place for call in calls for place in call] == case["concatenated"]


def test_rows_of_full_length(tables, vocabulary):
    case = tables["full_length_example"]
    text, at = case["text_len"], case["roi2_index"]
    codes = at - text - 4
    names = ("ROI1", "BASE", "BOI1", "EOI1", "ROI2", "POS0", "BOI2")
    c = {name: vocabulary.command(name) for name in names}
    row = [c["ROI1"], *[vocabulary.text_start] * text, c["BASE"], c["BOI1"], *[0] * codes]
    row += [c["EOI1"], c["ROI2"], c["POS0"], c["BASE"], c["BOI2"], *[-1] * 5]
    assert row[at] == c["ROI2"]
    first, *rest = sampling_positions(row, vocabulary)
    around = case["sampling_around"]
    assert first[at - 2 : at - 2 + len(around)].tolist() == around
    following = case["sampling_next_calls"]
    assert first[-1] + 1 == following[0][0]
    assert [call.tolist() for call in rest[: len(following)]] == following


def test_recorded_runs_of_the_official_sampler_were_fed_these_positions(fixtures, vocabulary):
    table = np.load(fixtures / "sampling_traces.npz")
    runs = [name.removesuffix(":seq") for name in table if name.endswith(":seq")]
    assert runs
    for run in runs:
        calls = sampling_positions(table[f"{run}:seq"], vocabulary)
        assert [len(call) for call in calls] == table[f"{run}:call_token_counts"].tolist()
        for ours, row in zip(calls, table[f"{run}:call_position_ids"], strict=True):
            assert ours.tolist() == row[row >= 0].tolist()


def test_a_sequence_begins_with_a_given_token(vocabulary):
    for sequence in ([], [-1, 3]):
        with pytest.raises(InputError, match="begins with a given token"):
            sampling_positions(sequence, vocabulary)
