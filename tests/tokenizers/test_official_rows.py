"""Training rows and loss masks of the release."""

import json

import numpy as np
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.official_rows import (
    code_to_code_row,
    cut_or_padded,
    loss_weights,
    pure_text_row,
    text_code_row,
)
from cogview_jax.tokenizers.query import parse_query
from cogview_jax.tokenizers.text import TextTokenizer
from cogview_jax.tokenizers.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def tables(fixtures):
    return json.loads((fixtures / "tokens.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def vocabulary(tables):
    return Vocabulary(tables["img_vocab"], tables["text_vocab"])


@pytest.fixture(scope="module")
def text(official_text):
    return TextTokenizer.load(official_text)


def test_rows_of_text_and_codes(tables, vocabulary, text):
    for case in tables["text_code_template"]:
        row = text_code_row(case["text"], case["codes"], vocabulary, text)
        assert row.tolist() == case["ids"], case["case"]
        assert row.dtype == np.int32


def test_odd_pictures_are_refused_where_the_release_fails(tables, vocabulary):
    """Its third odd case, codes as torch tensors, is none here."""
    counts = {"63 codes": 63, "25 codes (5x5)": 25}
    assert {*counts, "torch codes"} == set(tables["text_code_template_odd"])
    for name, count in counts.items():
        assert "error" in tables["text_code_template_odd"][name]
        with pytest.raises(InputError, match=f"of {count} codes: expected 64, 256, 1024, 4096"):
            text_code_row([], [0] * count, vocabulary)


def test_rows_of_two_pictures_and_of_text_alone(tables, vocabulary, text):
    case = tables["code2code"]
    query = parse_query(case["text"], vocabulary, text, lambda path: [])
    row = code_to_code_row(query, case["codes0"], case["codes1"], vocabulary)
    assert row.tolist() == case["ids"]
    case = tables["pure_text"]
    assert pure_text_row(case["text"], vocabulary, text).tolist() == case["ids"]


def test_loss_weights_count_by_the_token_that_goes_in(fixtures):
    sizes = json.loads((fixtures / "config.json").read_text())["config"]
    table = np.load(fixtures / "transformer_loss.npz")
    small = Vocabulary(sizes["n_img"], sizes["n_txt"])
    weights = loss_weights(table["text"], table["loss_mask_in"], small)
    for ours, name in zip(weights, ("txt_positions", "img_positions"), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, table[name])


def test_a_row_by_hand():
    """Codes 0-9, pieces 10-14; [PAD] 15, [BOI1] 16, [EOI1] 19, [ROI1] 22, [TINY] 29."""
    vocabulary = Vocabulary(10, 5)
    row = text_code_row([11, 14], [3] * 64, vocabulary)
    assert row.tolist() == [22, 11, 14, 29, 16, *[3] * 64, 19]
    tokens, valid = cut_or_padded(row, 72, vocabulary)
    assert tokens.tolist() == [*row.tolist(), 15, 15]
    assert valid.tolist() == [True] * 70 + [False] * 2
    text_weights, image_weights = loss_weights(tokens, valid, vocabulary)
    assert text_weights.tolist() == [1] * 5 + [0] * 66
    assert image_weights.tolist() == [0] * 5 + [1] * 64 + [0] * 2
    tokens, valid = cut_or_padded(row, 6, vocabulary)
    assert tokens.tolist() == [22, 11, 14, 29, 16, 3]
    assert valid.all()


@pytest.mark.parametrize(
    ("text", "codes", "message"),
    [
        ([9], [0] * 64, "text of ids from 9 to 9: expected 10 to 14"),
        ([15], [0] * 64, "text of ids from 15 to 15"),
        ([], [0] * 63 + [10], "codes of ids from 0 to 10: expected 0 to 9"),
    ],
)
def test_ids_out_of_their_range_are_refused(text, codes, message):
    with pytest.raises(InputError, match=message):
        text_code_row(text, codes, Vocabulary(10, 5))
