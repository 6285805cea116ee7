"""Images that a data set holds more than once: exactly, or nearly.

Legend: n images.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

#: Two images are nearly the same if at most so many bits of their hashes differ, and no value of
#: their thumbnails by more. Hashes alone are alike of all images with a few things on even ground.
NEAR_BITS, NEAR_COLOURS = 3, 24
#: Side of a thumbnail in pixels.
THUMBNAIL = 8
#: Hashes are cut into so many blocks. Where at most NEAR_BITS bits differ, two blocks agree.
_BLOCKS = NEAR_BITS + 2
#: Of many hashes that agree in two blocks, each is compared with so many that follow.
_REACH = 64


def difference_hash(image: UInt8[np.ndarray, "h w 3"]) -> int:
    """64 bits: whether each of 8 x 8 places is darker than its neighbour on the right.

    They are those of the image in grey, averaged to 8 rows of 9, so they stay nearly the same where
    an image is resized, compressed again or made brighter.
    """
    grey = Image.fromarray(image).convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(grey)
    return int.from_bytes(np.packbits(values[:, 1:] > values[:, :-1]).tobytes(), "big")


def thumbnail(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "r c 3"]:
    """The image averaged to `THUMBNAIL` rows and columns, in colour."""
    small = Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small)


def equal_groups(items: Iterable[bytes]) -> list[list[int]]:
    """The numbers of equal items, of those that come more than once, in the order of the first."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        places[item].append(number)
    return [numbers for numbers in places.values() if len(numbers) > 1]


def near_groups(
    hashes: UInt64[np.ndarray, " n"], thumbnails: UInt8[np.ndarray, "n r c 3"]
) -> list[list[int]]:
    """The numbers of images that are nearly the same, ascending, group by group.

    Whoever is near to one of a group belongs to it. Hashes are sorted by two of their blocks, for
    each two, and compared with those that have the same: n log n steps, not n^2. Of more than
    `_REACH` images that agree in two blocks, only those close in the order of their hashes and
    brightness are compared.

    Args:
        hashes: `difference_hash` of each image.
        thumbnails: `thumbnail` of each.
    """
    colours = thumbnails.reshape(len(hashes), -1)
    groups = _Groups(len(hashes))
    for one, other in _like_pairs(hashes, colours.sum(axis=1, dtype=np.int64)):
        apart = groups.label[one] != groups.label[other]
        one, other = one[apart], other[apart]
        differences = np.abs(colours[one].astype(np.int16) - colours[other])
        alike = differences.max(axis=1, initial=0) <= NEAR_COLOURS
        groups.join(one[alike].tolist(), other[alike].tolist())
    members = defaultdict(list)
    for number, label in enumerate(groups.label.tolist()):
        members[label].append(number)
    return [numbers for numbers in members.values() if len(numbers) > 1]


class _Groups:
    """Numbers in groups, each of which is called by its smallest number: `label` [n]."""

    def __init__(self, count: int):
        self.label = np.arange(count)

    def join(self, ones: Sequence[int], others: Sequence[int]) -> None:
        """Joins the groups of each pair."""
        label = self.label
        for one, other in zip(ones, others, strict=True):
            while label[one] != one:
                one = label[one]
            while label[other] != other:
                other = label[other]
            label[max(one, other)] = min(one, other)
        while ones and (label[label] != label).any():
            label[:] = label[label]


def _like_pairs(
    hashes: UInt64[np.ndarray, " n"], brightness: Int64[np.ndarray, " n"]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of numbers with near hashes and brightness; a pair may come several times."""
    ends = np.linspace(0, 64, _BLOCKS + 1).astype(int)
    blocks = [(1 << int(end)) - (1 << int(start)) for start, end in itertools.pairwise(ends)]
    furthest = NEAR_COLOURS * 3 * THUMBNAIL**2
    for kept in itertools.combinations(blocks, 2):
        keys = hashes & np.uint64(sum(kept))
        order = np.lexsort((brightness, hashes, keys))
        keys = keys[order]
        first = np.arange(len(keys))
        for step in range(1, _REACH + 1):
            # Keys are sorted: what differs from the one `step` behind differs from all later ones.
            first = first[first + step < len(keys)]
            first = first[keys[first] == keys[first + step]]
            if not len(first):
                break
            one, other = order[first], order[first + step]
            near = np.bitwise_count(hashes[one] ^ hashes[other]) <= NEAR_BITS
            near &= np.abs(brightness[one] - brightness[other]) <= furthest
            yield one[near], other[near]
