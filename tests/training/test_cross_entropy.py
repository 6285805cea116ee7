"""The loss in parts equals the loss over all logits, and never holds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.training.cross_entropy import weighted_cross_entropy

B, T, D, V = 3, 7, 8, 50


def inputs(dtype=jnp.float32):
    random = np.random.default_rng(0)
    hidden, table = random.standard_normal((B, T, D)), random.standard_normal((V, D))
    targets = random.integers(0, V, (B, T))
    weights = random.integers(0, 4, (B, T)).astype(np.float32)
    return jnp.asarray(hidden, dtype), jnp.asarray(table, dtype), targets, weights


def plain(hidden, table, targets, weights):
    """By jax's own functions, from all logits."""
    logits = jnp.asarray(hidden, jnp.float32) @ jnp.asarray(table, jnp.float32).T
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * weights), -chosen


def loss_and_gradients(function, hidden, table, targets, weights, scale=1.0):
    def loss(hidden, table):
        total, each = function(hidden, table, targets, weights)
        return scale * total, each

    (total, each), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, table)
    return [np.asarray(x, np.float64) for x in (total, each, *gradients)]


# All at once; 21 positions one at a time; 10 and 11, of which one is padding; 5 parts.
@pytest.mark.parametrize("logits", [None, 1, 11 * V, 5 * V, 10**9])
def test_it_is_the_loss_of_all_logits(logits):
    def in_parts(*arrays):
        return weighted_cross_entropy(*arrays, logits=logits)

    found = loss_and_gradients(in_parts, *inputs(), scale=0.3)
    expected = loss_and_gradients(plain, *inputs(), scale=0.3)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
    # Without a gradient too.
    total, each = in_parts(*inputs())
    np.testing.assert_allclose(total, expected[0] / 0.3, rtol=2e-6)
    np.testing.assert_allclose(each, expected[1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_types_come_as_near_as_their_digits_let_them(dtype):
    arrays = inputs(dtype)
    found = loss_and_gradients(lambda *a: weighted_cross_entropy(*a, logits=5 * V), *arrays)
    expected = loss_and_gradients(plain, *arrays)
    for ours, theirs in zip(found, expected, strict=True):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize(("weight", "surprise"), [(1e6, 0), (1e-6, 0), (1, 17)])
def test_float16_has_room_for_the_gradients_whatever_the_weights(weight, surprise):
    """Of ids that have a probability of about e^-17, below the smallest float16, too."""
    hidden, table, targets, weights = inputs(jnp.float16)
    hidden, table = (hidden / 8).at[..., 0].set(4), table.at[:, 0].set(0).at[0, 0].set(surprise / 4)
    arrays = hidden, table, np.ones_like(targets), weight * np.maximum(weights, 1)
    found = loss_and_gradients(weighted_cross_entropy, *arrays, scale=128 / weight)
    expected = loss_and_gradients(plain, *arrays, scale=128 / weight)
    for one in (lambda each: each[2], lambda each: each[3][:2], lambda each: each[3][2:]):
        error = np.linalg.norm(one(found) - one(expected)) / np.linalg.norm(one(expected))
        assert error < 2 * float(jnp.finfo(jnp.float16).eps)


def test_the_logits_are_never_whole():
    """A row of 2,000 positions over 5,000 ids has 40 MB of logits, a part of 100 has 2 MB."""
    hidden, table = jnp.zeros((1, 2000, 16)), jnp.zeros((5000, 16))
    targets, weights = np.zeros((1, 2000), int), np.ones((1, 2000), np.float32)

    def temporaries(logits):
        def loss(hidden, table):
            return weighted_cross_entropy(hidden, table, targets, weights, logits=logits)[0]

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, table).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(None) > 40e6
    assert temporaries(100 * 5000) < 8e6


def test_frozen_embeddings_cost_no_gradient():
    hidden, table, targets, weights = inputs()

    def loss(hidden, table):
        return weighted_cross_entropy(hidden, table, targets, weights, logits=5 * V)[0]

    def work(argnums):
        compiled = jax.jit(jax.grad(loss, argnums)).lower(hidden, table).compile()
        return compiled.cost_analysis()["flops"]

    assert work(0) < 0.75 * work((0, 1))
