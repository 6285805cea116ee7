"""Several streams as one by their weights: which of them has a place, and its place there.

Two streams of shares a and 1 - a take turns so that the first has round(n * a) of the first n
places. Of more, the two of least weight become one stream, again and again until one is left, as
in a Huffman code. All is exact and follows from the number of the place alone: nothing is
remembered, counted through or drawn.

However far, a stream of share s has s * n of the first n places, give or take less than 2 (of two
streams 1/2): each step down the tree adds at most 1/2, which the shares of the steps below it
shrink, and two steps at least halve a weight. So any n places in a row are right within 4 (of two
streams 1).
"""

import heapq
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class _Pair(NamedTuple):
    """Two streams as one; the first has this share of its places."""

    share: Fraction
    first: "_Pair | int"
    second: "_Pair | int"


class Interleaving:
    """The stream of each place, and its place in that stream, in O(depth of the tree)."""

    def __init__(self, weights: Sequence[float]):
        """`weights` are above 0 and taken as they are written: .7 and .3 are 7 and 3."""
        exact = [Fraction(str(weight)) for weight in weights]
        total, numbers = sum(exact), itertools.count()
        self.shares = tuple(float(weight / total) for weight in exact)
        heap: list[tuple[Fraction, int, _Pair | int]]
        heap = [(weight, next(numbers), stream) for stream, weight in enumerate(exact)]
        heapq.heapify(heap)
        while len(heap) > 1:
            (light, _, second), (heavy, _, first) = heapq.heappop(heap), heapq.heappop(heap)
            both = light + heavy
            heapq.heappush(heap, (both, next(numbers), _Pair(heavy / both, first, second)))
        self._tree = heap[0][2]

    def __call__(self, place: int) -> tuple[int, int]:
        """The number of the stream that has a place, and how many places before it has had."""
        node = self._tree
        while not isinstance(node, int):
            before, then = _rounded(place * node.share), _rounded((place + 1) * node.share)
            node, place = (node.first, before) if then > before else (node.second, place - before)
        return node, place


def _rounded(x: Fraction) -> int:
    """The nearest whole number; of two the larger one."""
    return (2 * x.numerator + x.denominator) // (2 * x.denominator)
