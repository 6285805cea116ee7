"""Pivots are all text and random image tokens, drawn anew for each layer and row."""

import jax
import numpy as np

from cogview_jax.models.pivots import draw_pivots

TEXT = np.array([[1] * 4 + [0] * 26, [1] * 6 + [0] * 24], bool)
IMAGE = np.array([[0] * 4 + [1] * 25 + [0], [0] * 6 + [1] * 3 + [0] * 21], bool)


def drawn(seed=0, count=10, layers=50, length=30):
    keys = jax.random.split(jax.random.key(seed), 2)
    return np.asarray(draw_pivots(keys, TEXT[:, :length], IMAGE[:, :length], count, layers))


def test_pivots_are_all_text_and_images_by_chance():
    pivots = drawn()
    assert pivots.shape == (50, 2, 10)
    assert (np.diff(pivots) >= 0).all()
    assert (pivots[:, 0, :4] == np.arange(4)).all()
    assert ((pivots[:, 0, 4:] >= 4) & (pivots[:, 0, 4:] < 29)).all()
    assert all(len(set(row)) == 10 for row in pivots[:, 0].tolist())
    # The second row has nine tokens; the tenth pivot is missing.
    assert (pivots[:, 1] == [*range(9), 30]).all()


def test_pivots_differ_by_layer_row_and_key_and_every_image_token_has_its_turn():
    pivots = drawn(layers=400)[:, 0]
    assert len({tuple(row) for row in pivots.tolist()}) > 390
    assert (drawn(seed=1)[:, 0] != drawn()[:, 0]).any(-1).all()
    counts = np.bincount(pivots[:, 4:].ravel(), minlength=30)[4:29]
    # In 400 draws of 6 out of 25, each is drawn 96 times on average, with a deviation of 8.5.
    assert (np.abs(counts - 96) < 4 * 8.5).all()


def test_pivots_do_not_depend_on_padding_or_company():
    np.testing.assert_array_equal(drawn(length=29)[:, 0], drawn()[:, 0])
    keys = jax.random.split(jax.random.key(0), 2)[1:]
    alone = draw_pivots(keys, TEXT[1:], IMAGE[1:], 7, 3)
    np.testing.assert_array_equal(alone[:, 0], drawn(count=7, layers=3)[:, 1])


def test_more_text_than_pivots_keeps_the_first():
    assert drawn(count=3, layers=1)[0].tolist() == [[0, 1, 2]] * 2
