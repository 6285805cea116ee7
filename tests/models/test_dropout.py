"""The masks of dropout have the right share, are independent, and are hashes of the index."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.models.dropout import dropout, hashed_bits

SHAPE = (64, 32, 128)
M = 2**32


def finalise(x):
    """Computes fmix32 of MurmurHash3 for one number."""
    x ^= x >> 16
    x = x * 0x85EBCA6B % M
    x ^= x >> 13
    x = x * 0xC2B2AE35 % M
    return x ^ (x >> 16)


def test_a_bit_is_the_hash_of_its_row_its_place_and_the_key():
    key = jax.random.key(7)
    first, second = (int(word) for word in jax.random.bits(key, (2,)))
    bits = np.asarray(hashed_bits(key, (3, 2, 5)))
    for row, place in itertools.product(range(3), range(10)):
        expected = finalise((finalise(place ^ first) + row * 0x9E3779B1 + second) % M)
        assert int(bits[row].ravel()[place]) == expected


def keep_mask(key, rate, shape=SHAPE):
    return np.asarray(dropout(jnp.ones(shape), rate, jax.random.key(key))) > 0


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_the_share_is_right_in_all_rows_and_columns(rate):
    mask, n = keep_mask(0, rate), np.prod(SHAPE)
    for axes in ((), (0,), (1,), (2,)):
        shares = mask.mean(axis=tuple({0, 1, 2} - set(axes)))
        error = np.sqrt(rate * (1 - rate) * np.size(shares) / n)
        assert np.abs(shares - (1 - rate)).max() <= 5 * error


@pytest.mark.parametrize(
    "shift", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2), (1, 1, 1), (0, 16, 64)]
)
def test_neighbours_are_independent(shift):
    """The chance that two neighbours are both dropped is the square of the rate."""
    mask = ~keep_mask(1, 0.25)
    both = (mask & np.roll(mask, shift, (0, 1, 2))).mean()
    assert both == pytest.approx(0.25**2, abs=5 * np.sqrt(0.0625 / mask.size))


def test_masks_of_keys_are_independent():
    """This also holds for consecutive keys; no mask is a shifted copy of another."""
    masks = np.stack([~keep_mask(key, 0.25) for key in range(8)]).reshape(8, -1)
    for one, two in itertools.combinations(masks, 2):
        spectrum = np.fft.rfft(one - 0.25) * np.conj(np.fft.rfft(two - 0.25))
        correlation = np.fft.irfft(spectrum, one.size) / one.size / (0.25 * 0.75)
        assert np.abs(correlation).max() < 7 / np.sqrt(one.size)


def test_what_is_kept_is_scaled_and_so_is_its_gradient():
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    key = jax.random.key(3)
    y, pullback = jax.vjp(lambda x: dropout(x, 0.2, key), x)
    mask = keep_mask(3, 0.2)
    np.testing.assert_allclose(y, np.where(mask, x / 0.8, 0), rtol=1e-6)
    np.testing.assert_allclose(pullback(jnp.asarray(x))[0], np.where(mask, x / 0.8, 0), rtol=1e-6)


def test_the_type_stays():
    assert dropout(jnp.ones(SHAPE, jnp.bfloat16), 0.1, jax.random.key(0)).dtype == jnp.bfloat16
