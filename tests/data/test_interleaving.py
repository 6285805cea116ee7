"""Whose turn it is at each place: by Huffman's tree in a slow form, within the stated bounds."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from cogview_jax.data.interleaving import Interleaving

WEIGHTS = {
    "one": [3],
    "two alike": [1, 1],
    "two": [0.7, 0.3],
    "rare": [1, 0.001],
    "three": [5, 3, 2],
    "alike": [1] * 7,
    "many and few": [100, *[1] * 20],
    "powers": [2.0**i for i in range(8)],
    "Fibonacci": [1, 1, 2, 3, 5, 8, 13, 21, 34],
    "odd": [math.pi, math.e, 1e-3, 17.25, 0.1],
}


def turns(weights, count):
    """The stream of each of the first places, by giving every place down a tree step by step."""

    def merged(streams):
        """(weight, order, what it is made of): the two lightest become one until one is left."""
        while len(streams) > 1:
            streams = sorted(streams, key=lambda one: one[:2])
            (light, _, below), (heavy, _, above) = streams[:2]
            order = max(one[1] for one in streams) + 1
            streams = [*streams[2:], (light + heavy, order, ((heavy, above), (light, below)))]
        return streams[0][2]

    def taken(node, places):
        """Gives each of the places to the heavier side whenever it is half a place behind."""
        if isinstance(node, int):
            result.update(dict.fromkeys(places, node))
            return
        ((heavy, above), (light, below)), sides, had = node, ([], []), 0
        for turn, place in enumerate(places, 1):
            behind = Fraction(turn) * heavy / (heavy + light) - had >= Fraction(1, 2)
            sides[0 if behind else 1].append(place)
            had += behind
        taken(above, sides[0])
        taken(below, sides[1])

    result = {}
    exact = [(Fraction(str(weight)), i, i) for i, weight in enumerate(weights)]
    taken(merged(exact), range(count))
    return [result[place] for place in range(count)]


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_places_are_those_of_the_slow_form(weights):
    count = 700
    expected, had = turns(weights, count), [0] * len(weights)
    interleaving = Interleaving(weights)
    for place, stream in enumerate(expected):
        assert interleaving(place) == (stream, had[stream]), place
        had[stream] += 1


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("first", [0, 10**15])
def test_shares_hold_in_every_window(weights, first):
    """Of all windows in 3,000 places: their counts are off by the range of the deviations."""
    count, interleaving = 3000, Interleaving(weights)
    shares = np.array(weights) / sum(weights)
    np.testing.assert_allclose(interleaving.shares, shares, rtol=1e-12)
    streams = np.array([interleaving(first + i)[0] for i in range(count)])
    had = np.cumsum(streams[:, None] == np.arange(len(weights)), axis=0)
    deviation = np.vstack([np.zeros(len(weights)), had - np.outer(np.arange(1, count + 1), shares)])
    most = np.ptp(deviation, axis=0).max()
    assert most <= {1: 0, 2: 1}.get(len(weights), 4) + 1e-9
    if not first:
        assert np.abs(deviation).max() <= (0.5 if len(weights) == 2 else 2) + 1e-9


def test_far_away_the_place_of_a_stream_is_the_count_of_its_places_before():
    """Nothing is rounded, however far: the counts of 10^18 places are exact."""
    interleaving, far = Interleaving([0.7, 0.2, 0.1]), 10**18
    seen = {}
    for place in itertools.takewhile(lambda _: len(seen) < 3, itertools.count(far)):
        stream, number = interleaving(place)
        seen.setdefault(stream, number)
    assert seen == {0: 7 * 10**17, 1: 2 * 10**17, 2: 10**17}


def test_only_the_proportion_of_weights_counts():
    pairs = ([0.7, 0.2, 0.1], [7, 2, 1]), ([0.3, 0.3], [5, 5])
    for one, other in pairs:
        assert list(map(Interleaving(one), range(50))) == list(map(Interleaving(other), range(50)))
