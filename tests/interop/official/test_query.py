"""Queries and decoded sequences against the release's, and small ones by hand."""

import json

import numpy as np
import pytest

from cogview_jax.interop.official.query import (
    decode_sequence,
    parse_query,
    text_ids,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.decode import OPEN
from cogview_jax.tokenizers.text import TextConfig, TextTokenizer, train_text_tokenizer
from cogview_jax.tokenizers.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def tables(fixtures):
    return json.loads((fixtures / "tokens.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def official(tables, official_text):
    """Parses queries and decodes ids over the released vocabulary and the recorded images."""
    return Official(tables, TextTokenizer.load(official_text))


class Official:
    def __init__(self, tables, text):
        self.vocabulary = Vocabulary(tables["img_vocab"], tables["text_vocab"])
        self.text, self.images = text, tables["image_codes"]

    def read_codes(self, path):
        if path not in self.images:
            raise InputError(f"no image at {path}")
        return self.images[path]

    def parse(self, query):
        return parse_query(query, self.vocabulary, self.text, self.read_codes)

    def decode(self, ids):
        return decode_sequence(ids, self.vocabulary, self.text)


def test_queries_of_every_task_are_parsed_as_the_release_does(tables, official):
    templates = tables["query_templates"]
    assert {case["task"] for case in tables["parse_query"]} == set(templates)
    for case in tables["parse_query"]:
        ids = official.parse(templates[case["task"]].format(*case["raw_text"].split("\t")))
        assert ids.tolist() == case["ids"]
        assert ids.dtype == np.int32
        assert len(ids) == case["length"]


def test_odd_queries_are_parsed_or_refused_as_the_release_does(tables, official):
    for query, outcome in tables["parse_query_odd"].items():
        if "ok" in outcome:
            assert official.parse(query).tolist() == outcome["ok"]
        else:
            with pytest.raises(InputError):
                official.parse(query)


def test_sequences_are_decoded_as_the_release_does(tables, official):
    for case in tables["decode"]:
        decoded = official.decode(case["ids"])
        assert decoded.parts == case["ok"]["parts"], case["case"]
        assert decoded.images == case["ok"]["image_codes"], case["case"]


def test_malformed_sequences_are_refused_where_the_release_fails(tables, official):
    padding, codes = tables["num_tokens"], tables["text_code_template"][0]["codes"][:-1]
    sequences = {
        "non-square image": (codes, f"of {len(codes)} codes"),
        f"id in the padding area ({padding})": ([padding], f"id {padding} is neither"),
        "minus one": ([-1], None),
    }
    assert set(sequences) == set(tables["decode_odd"])
    for name, (ids, message) in sequences.items():
        outcome = tables["decode_odd"][name]
        assert ("error" in outcome) == bool(message)
        if message:
            with pytest.raises(InputError, match=message):
                official.decode(ids)
        else:
            decoded = official.decode(ids)
            assert (decoded.parts, decoded.images) == tuple(outcome["ok"].values())


SMALL = Vocabulary(10, 400)


@pytest.fixture(scope="module")
def small_text():
    captions = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("dot", "line")]
    return train_text_tokenizer(captions * 3, TextConfig(300, "bpe"))


def parse(query, small_text):
    return parse_query(query, SMALL, small_text, lambda path: [len(path), 3, 1, 2]).tolist()


def test_a_query_by_hand(small_text):
    red, dot = (text_ids(words, SMALL, small_text) for words in ("a red", "dot"))
    boi1 = SMALL.command("BOI1")
    query = "a red [BOI1] [Image2]ab.c [MASK]*2 dot"
    assert parse(query, small_text) == [*red, boi1, 4, 3, OPEN, OPEN, OPEN, OPEN, *dot]
    # The order of the line, also where no command parts text and image.
    assert parse("dot [Image9]x", small_text) == [*dot, 1, 3, 1, 2]
    assert parse("[Image0]x", small_text) == [OPEN] * 4


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("[MASK]*0", r"'\[MASK\]\*0': expected \[MASK\]\*N with a number N of at least 1"),
        ("[MASK]*-1", "expected"),
        ("[MASK]*", "expected"),
        ("[Image*2]x", r"expected \[Image\]PATH, or \[ImageN\]PATH with a number N"),
        ("[Image]", r"expected \[Image\]PATH"),
    ],
)
def test_special_words_written_wrongly_are_refused(small_text, query, message):
    with pytest.raises(InputError, match=message):
        parse(query, small_text)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("[MASK]*99", "stands for more than 50 tokens"),
        (f"[MASK]*{'9' * 100_000}", "stands for more than 50 tokens"),
        ("[MASK]*000051", "stands for more than 50 tokens"),
        ("[MASK]*40 [MASK]*11", "a query of more than 50 tokens"),
        ("[Image]x " * 13, "a query of more than 50 tokens"),
        ("a red dot " * 30, "a query of more than 50 tokens"),
        ("a" * (1 << 20) + "b", "a query of 1048577 characters: expected at most 1048576"),
    ],
)
def test_a_query_is_not_expanded_beyond_what_it_may_stand_for(small_text, query, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_query(query, SMALL, small_text, lambda path: [1, 2, 3, 4], 50)
    assert len(str(caught.value)) < 200
    assert parse_query("[MASK]*50", SMALL, small_text, list, 50).tolist() == [OPEN] * 50


@pytest.mark.parametrize("query", ["a \ud800 dot", "a\0dot [MASK]"])
def test_what_is_no_text_is_refused(small_text, query):
    with pytest.raises(InputError, match="is no text: expected Unicode"):
        parse_query(query, SMALL, small_text, list)


def test_more_digits_than_any_image_has_codes_are_all_codes(small_text):
    assert parse(f"[Image{'9' * 5000}]x", small_text) == [1, 3, 1, 2]


def test_text_must_fit_the_vocabulary_and_the_tokenizer(small_text):
    with pytest.raises(InputError, match=r"'a dot' has piece \d+, but the vocabulary has 5 piec"):
        text_ids("a dot", Vocabulary(10, 5), small_text)
    beyond = SMALL.text_start + len(small_text)
    with pytest.raises(InputError, match=f"id {beyond} is neither"):
        decode_sequence([beyond], SMALL, small_text)
