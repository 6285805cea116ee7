"""Duplicates: what a hash says of drawn images, and groups against all pairs compared."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cogview_jax.data import duplicates
from cogview_jax.data.duplicates import (
    NEAR_BITS,
    NEAR_COLOURS,
    difference_hash,
    equal_groups,
    near_groups,
    thumbnail,
)


def picture(number, size=(96, 72)):
    """An image of a few dozen smooth blobs, another for each number."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def again(image, quality):
    """The image compressed as JPEG."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def measured(images):
    arrays = [np.asarray(image) for image in images]
    hashes = np.array([difference_hash(image) for image in arrays], np.uint64)
    return hashes, np.stack([thumbnail(image) for image in arrays])


def bits_of(value):
    return [(value >> (63 - i)) & 1 for i in range(64)]


def test_a_bit_is_whether_it_grows_brighter_to_the_right():
    """Nine columns of eight rows; row r grows brighter up to column r, and then darker."""
    grey = np.array([[100 + 5 * min(c, 2 * r - c) for c in range(9)] for r in range(8)], np.uint8)
    image = np.repeat(np.repeat(grey, 3, axis=0), 5, axis=1)[..., None].repeat(3, axis=2)
    expected = [int(column < row) for row in range(8) for column in range(8)]
    assert bits_of(difference_hash(image)) == expected
    brighter = image + np.uint8(60)
    assert difference_hash(brighter) == difference_hash(image)
    assert difference_hash(np.full((5, 7, 3), 77, np.uint8)) == 0


def test_a_thumbnail_is_the_mean_of_each_part():
    image = np.random.default_rng(0).integers(0, 256, (80, 160, 3), np.uint8)
    means = image.reshape(8, 10, 8, 20, 3).mean(axis=(1, 3))
    assert np.abs(thumbnail(image) - means).max() <= 1


def test_equal_items_are_grouped_in_their_order():
    items = [b"a", b"b", b"a", b"c", b"b", b"a"]
    assert equal_groups(items) == [[0, 2, 5], [1, 4]]


def test_copies_that_were_resized_compressed_or_brightened_are_near():
    originals = [picture(number) for number in range(40)]
    copies = {
        3: again(originals[3].resize((192, 144)), 80),
        7: again(originals[7].resize((64, 48)), 70),
        11: Image.fromarray(
            np.minimum(np.asarray(originals[11]).astype(int) + 6, 255).astype("u1")
        ),
    }
    groups = near_groups(*measured([*originals, *copies.values()]))
    assert groups == [[3, 40], [7, 41], [11, 42]]


def test_drawings_on_even_ground_are_told_apart_by_colour_and_place():
    def drawing(colour, box):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle(box, colour)
        return image

    boxes = [(8, 8, 24, 24), (8, 8, 24, 56), (40, 40, 56, 56)]
    images = [drawing(colour, box) for colour in ("red", "blue", "black") for box in boxes]
    assert near_groups(*measured(images)) == []
    near = drawing((240, 9, 9), (8, 8, 24, 24))
    assert near_groups(*measured([*images, near])) == [[0, 9]]


@pytest.mark.parametrize("reach", [64, 4])
def test_groups_are_those_of_all_pairs(reach, monkeypatch):
    """600 hashes in 150 families, up to 4 bits apart, and thumbnails that differ in some."""
    monkeypatch.setattr(duplicates, "_REACH", reach)
    rng = np.random.default_rng(0)
    hashes = np.repeat(rng.integers(0, 2**64, 150, dtype=np.uint64), 4)
    for i in range(len(hashes)):
        for bit in rng.choice(64, rng.integers(3), replace=False):
            hashes[i] ^= np.uint64(1) << np.uint64(bit)
    thumbnails = np.repeat(rng.integers(60, 190, (150, 8, 8, 3)).astype(np.uint8), 4, axis=0)
    thumbnails[::3] += rng.integers(0, 2 * NEAR_COLOURS, (200, 1, 1, 1)).astype(np.uint8)
    order = rng.permutation(len(hashes))
    hashes, thumbnails = hashes[order], thumbnails[order]
    linked = {i: {i} for i in range(len(hashes))}
    for one, other in itertools.combinations(range(len(hashes)), 2):
        bits = (int(hashes[one]) ^ int(hashes[other])).bit_count()
        colours = np.abs(thumbnails[one].astype(int) - thumbnails[other]).max()
        if bits <= NEAR_BITS and colours <= NEAR_COLOURS and linked[one] is not linked[other]:
            linked[one] |= linked[other]
            for member in linked[other]:
                linked[member] = linked[one]
    expected = {tuple(sorted(group)) for group in linked.values() if len(group) > 1}
    found = near_groups(hashes, thumbnails)
    assert all(group == sorted(group) for group in found)
    assert {tuple(group) for group in found} == expected
    assert len(expected) > 100


def test_many_alike_take_no_longer_than_their_number():
    """20,000 images whose hashes all agree: pairs would be 200 million."""
    thumbnails = np.zeros((20_000, 8, 8, 3), np.uint8)
    thumbnails[10_000:] = 200
    groups = near_groups(np.zeros(20_000, np.uint64), thumbnails)
    assert list(map(len, groups)) == [10_000, 10_000]
