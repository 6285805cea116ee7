"""Random views of images, and that all views of one stay together."""

import itertools

import numpy as np
import pytest

from cogview_jax.data.held_out import held_out_numbers, split
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.views import RandomView, Views

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (12, 20, 3), np.uint8)


class Few:
    """Three records, of which the second cannot be read."""

    def __len__(self):
        return 3

    def key(self, i):
        return f"image {i}"

    def __getitem__(self, i):
        if i == 1:
            raise BadRecord(self.key(i), "it is broken")
        return Record(self.key(i), np.roll(IMAGE, i, axis=1), (f"text {i}",))


def places(view, image):
    """Where a view is a part of an image: [(top, left), ...]."""
    (rows, columns), (height, width) = view.shape[:2], image.shape[:2]
    corners = itertools.product(range(height - rows + 1), range(width - columns + 1))
    return [
        (top, left)
        for top, left in corners
        if np.array_equal(image[top : top + rows, left : left + columns], view)
    ]


def test_a_view_is_a_part_of_the_image_of_its_own_aspect_ratio():
    look, found = RandomView(smallest=0.5), set()
    for seed in range(40):
        view = look(IMAGE, np.random.default_rng(seed))
        rows, columns = view.shape[:2]
        assert 6 <= rows <= 12
        assert abs(columns - 20 * rows / 12) <= 20 / 12
        (place,) = places(view, IMAGE)
        found.add((rows, place))
    assert len(found) > 30


def test_a_larger_view_shows_the_whole_image_on_pixels_of_its_edge():
    look, corners = RandomView(smallest=1.5, largest=1.5), set()
    for seed in range(40):
        view = look(IMAGE, np.random.default_rng(seed))
        assert view.shape == (18, 30, 3)
        ((top, left),) = places(IMAGE, view)
        rows = np.clip(np.arange(18) - top, 0, 11)
        columns = np.clip(np.arange(30) - left, 0, 19)
        np.testing.assert_array_equal(view, IMAGE[rows][:, columns])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(7))
    assert len({left for _, left in corners}) > 8


def test_a_view_of_another_aspect_ratio_is_cut_at_a_random_place():
    look, lefts = RandomView(aspect=(3, 2)), set()
    for seed in range(100):
        view = look(IMAGE, np.random.default_rng(seed))
        assert view.shape == (12, 8, 3)
        ((top, left),) = places(view, IMAGE)
        assert top == 0
        lefts.add(left)
    assert lefts == set(range(13))


def test_half_of_the_views_are_mirrored():
    look = RandomView(flip=True)
    views = [look(IMAGE, np.random.default_rng(seed)) for seed in range(100)]
    mirrored = [np.array_equal(view, IMAGE[:, ::-1]) for view in views]
    assert 35 < sum(mirrored) < 65
    for view, other in zip(views, mirrored, strict=True):
        np.testing.assert_array_equal(view, IMAGE[:, ::-1] if other else IMAGE)
    np.testing.assert_array_equal(RandomView()(IMAGE, RNG), IMAGE)


def test_the_first_view_of_a_record_is_the_record():
    source, look = Few(), RandomView(0.5, 1.2, flip=True)
    views = Views(source, 4, look, seed=3)
    assert len(views) == 12
    names = ["image 0", "image 0 view 1", "image 0 view 2", "image 0 view 3", "image 1"]
    assert [views.key(i) for i in range(5)] == names
    assert views.describe() == "3 records; 4 views of each"
    for i in (0, 8):
        np.testing.assert_array_equal(views[i].image, source[i // 4].image)
    for i in (1, 2, 3, 9, 10, 11):
        view, again = views[i], Views(source, 4, look, seed=3)[i]
        assert (view.key, view.captions) == (views.key(i), (f"text {i // 4}",))
        np.testing.assert_array_equal(view.image, again.image)
        assert not np.array_equal(view.image, source[i // 4].image)
    assert not np.array_equal(views[1].image, Views(source, 4, look, seed=4)[1].image)
    for i in range(4, 8):
        with pytest.raises(BadRecord, match="it is broken"):
            views[i]


@pytest.mark.parametrize("together", [1, 3, 7])
def test_views_are_held_out_together(together):
    numbers = range(700 * together)
    training, held_out = split(_Numbers(numbers), 0.1, together)
    out = [held_out[i] for i in range(len(held_out))]
    groups = held_out_numbers(700, 0.1)
    assert out == [group * together + i for group in groups for i in range(together)]
    assert sorted([*out, *(training[i] for i in range(len(training)))]) == list(numbers)


class _Numbers:
    """A source whose records are their numbers."""

    def __init__(self, numbers):
        self._numbers = numbers

    def __len__(self):
        return len(self._numbers)

    def key(self, i):
        return str(self._numbers[i])

    def __getitem__(self, i):
        return self._numbers[i]
