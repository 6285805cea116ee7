"""Shares of attention: heads made by hand, and random ones by loops."""

import math
from collections import defaultdict

import numpy as np
import pytest

from cogview_jax.evaluation.attention_shares import (
    KEYS,
    KINDS,
    MIXED,
    OFFSETS,
    attention_means,
    equal_weights,
    head_shares,
    mean_over,
    places_of,
    text_attention,
)
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary

GRID = 4
LAYOUT = make_layout(LayoutConfig(text_length=6, grid=GRID), Vocabulary(codes=20, text=9))


def sequence(words):
    """A row without [EOI1]: [ROI1] words [TINY] [BOI1] 16 codes."""
    row = LAYOUT.tokens({"text": range(words), "image": range(GRID**2)})[:-1]
    return row, places_of(LAYOUT, row)


def looking(key, words=3):
    """The means of a head whose query (row, column) gives all its attention to one token.

    key: (row, column) -> the number of a token, or the (row, column) of a code.
    """
    row, places = sequence(words)
    weights = np.zeros((1, len(row), len(row)), np.float32)
    for number, at in enumerate(np.ndindex(GRID, GRID)):
        seen = key(*at)
        place = places.codes[seen[0] * GRID + seen[1]] if isinstance(seen, tuple) else seen
        weights[0, places.codes[number], place] = 1
    return attention_means(weights, places)


def test_places():
    row, places = sequence(3)
    assert places.text.tolist() == [1, 2, 3]
    assert places.commands.tolist() == [0, 4, 5]
    assert places.codes.tolist() == list(range(6, 22))
    assert places.names[:5] == ("[ROI1]", "[TINY]", "[BOI1]", "code 0,0", "code 0,1")
    assert (places.names[-1], places.grid, len(row)) == ("code 3,3", 4, 22)


def test_a_head_that_looks_above_attends_by_position():
    """In the first row, where there is nothing above, it looks at itself."""
    found = head_shares(looking(lambda row, column: (max(row - 1, 0), column)))
    position, text, _ = found.shares[0]
    assert (position, text) == (1, 0)
    assert found.offsets[0, :2].tolist() == [[-1, 0], [0, 0]]
    np.testing.assert_allclose(found.offset_shares[0], [0.75, 0.25, 0, 0, 0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.spread[0] == pytest.approx(math.exp(entropy))
    assert head_kinds(found) == ["position"]


def test_offsets_have_their_signs():
    """Two rows up and one column to the right, where there is such a code; else the sink."""
    found = head_shares(looking(lambda r, c: (r - 2, c + 1) if r > 1 and c < 3 else 0))
    assert found.offsets[0, 0].tolist() == [-2, 1]
    assert found.offset_shares[0, 0] == pytest.approx(6 / 16)
    assert found.spread[0] == pytest.approx(1)


def test_a_head_that_looks_at_the_text_attends_by_text():
    found = head_shares(looking(lambda row, column: 1 + column % 3))
    assert found.shares[0].tolist() == [0, 1, 0]
    assert found.spread[0] == 0
    assert head_kinds(found) == ["text"]


@pytest.mark.parametrize(("sink", "name"), [(5, "[BOI1]"), ((0, 0), "code 0,0")])
def test_a_head_that_always_looks_at_one_token_attends_to_few(sink, name):
    found = head_shares(looking(lambda row, column: sink))
    _, text, few = found.shares[0]
    assert (text, few) == (0, 1)
    _, places = sequence(3)
    assert places.names[found.keys[0, 0]] == name
    assert found.key_shares[0].tolist() == [1, 0, 0]
    assert head_kinds(found) == ["few tokens"]


def head_kinds(found):
    """The kinds of heads, which are one layer, beside equal attention."""
    row, places = sequence(3)
    equal = head_shares(attention_means(equal_weights(len(row)), places)).shares[0]
    return found._replace(shares=found.shares[None]).kinds(equal)[0]


def test_equal_attention_is_of_no_kind():
    row, places = sequence(2)
    found = head_shares(attention_means(equal_weights(len(row)), places))
    # The query of code i sees the 5 tokens before the image, and i + 1 codes.
    assert found.shares[0, 1] == pytest.approx(np.mean([2 / (6 + i) for i in range(16)]))
    assert found._replace(shares=found.shares[None]).kinds(found.shares[0]) == [[MIXED]]


def by_loops(weights, places):
    """The three shares of one head, a weight at a time."""
    text, keys, offsets = 0.0, defaultdict(float), defaultdict(float)
    for number, query in enumerate(places.codes):
        for place in range(query + 1):
            weight = float(weights[query, place]) / len(places.codes)
            if place in places.text:
                text += weight
                continue
            keys[place] += weight
            if place >= places.codes[0]:
                key = place - places.codes[0]
                offsets[key // GRID - number // GRID, key % GRID - number % GRID] += weight
    position = sum(sorted(offsets.values())[-OFFSETS:])
    return [position, text, sum(sorted(keys.values())[-KEYS:])], offsets


def test_random_heads_by_loops():
    row, places = sequence(4)
    weights = np.tril(np.random.default_rng(0).random((3, len(row), len(row))) ** 6)
    weights /= weights.sum(axis=-1, keepdims=True)
    means = attention_means(weights, places)
    found = head_shares(means)
    for head in range(3):
        shares, offsets = by_loops(weights[head], places)
        np.testing.assert_allclose(found.shares[head], shares)
        for row, column in np.ndindex(*means.offsets.shape[1:]):
            at = (row - (GRID - 1), column - (GRID - 1))
            assert means.offsets[head, row, column] == pytest.approx(offsets[at], abs=1e-12)
    reading = text_attention(weights, places)
    assert reading.shape == (3, 4, 16)
    assert reading[1, 2, 7] == weights[1, places.codes[7], places.text[2]]
    np.testing.assert_allclose(reading.mean(axis=-1).sum(axis=-1), found.shares[:, 1])
    np.testing.assert_allclose(means.text + means.keys.sum(axis=-1), 1)


def test_images_with_captions_of_other_lengths_are_averaged():
    """One attends to the text alone, three to [BOI1], which has another place in each row."""
    images = [looking(lambda row, column: 1, words=2)]
    images += [looking(lambda row, column, words=words: words + 2, words) for words in (1, 4, 6)]
    found = head_shares(mean_over(iter(images)))
    assert found.shares[0].tolist() == [0, 0.25, 0.75]
    assert sequence(1)[1].names[found.keys[0, 0]] == "[BOI1]"
    assert KINDS[found.shares[0].argmax()] == "few tokens"
