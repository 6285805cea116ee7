"""Counted by hand, by XLA, and by the formula of the transformer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from cogview_jax.dry_run.flops import function_flops
from cogview_jax.models.implementation import Implementation

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))


def loop(a, b):
    """Seven products of 3 x 4 with 4 x 4."""
    return jax.lax.scan(lambda a, _: (a @ (b @ b.T), None), a, length=7)[0]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: jnp.sin(a) @ b, 2 * 3 * 4 * 5),
        (jax.jit(lambda a, b: a @ b), 2 * 3 * 4 * 5),
        (lambda a, b: jnp.einsum("ij,jk->ik", a, b), 2 * 3 * 4 * 5),
        (loop, 7 * (2 * 4 * 5 * 4 + 2 * 3 * 4 * 4)),
        (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: 2 * (a @ b)), 120),
        # Two products forward, one again, and two backward.
        (
            jax.value_and_grad(
                lambda a, b: jnp.sum(jax.checkpoint(lambda a: jnp.sin(a @ b) @ b.T)(a))
            ),
            600,
        ),
        # No result depends on the product.
        (lambda a, b: [a @ b, jnp.sin(a)][1], 0),
        (lambda a, b: jnp.sum(a) + jnp.sum(b), 0),
    ],
)
def test_by_hand(function, expected):
    assert function_flops(function, A, B) == expected


def test_arithmetic_in_an_endless_loop_is_not_guessed():
    def endless(a, b):
        return jax.lax.while_loop(lambda a: a[0, 0] < 9, lambda a: a @ (b @ b.T), a)

    with pytest.raises(ValueError, match="its length is unknown"):
        function_flops(endless, A, B)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_convolution_has_what_xla_counts(stride, dilation):
    x, kernel = jnp.ones((2, 16, 16, 8)), jnp.ones((4, 4, 8, 6))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(0, 0), (0, 0)],
            lhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    counted = jax.jit(convolve).lower(x, kernel).compile().cost_analysis()["flops"]
    assert function_flops(convolve, x, kernel) == pytest.approx(counted, rel=0.02)


def gradient_flops(remat):
    config = dataclasses.replace(tiny.TRANSFORMER, remat=remat)
    # The formula counts what the causal mask hides, too.
    programs = Implementation("xla", "layers", "cpu")
    objective = tiny.transformer_objective(config, implementation=programs)
    params = tiny.start(objective).params
    batch, rows = tiny.sequences(0), np.arange(tiny.BATCH)

    def loss(params):
        return objective.sums(params, (), batch, rows, jax.random.key(0)).loss

    return objective, function_flops(jax.grad(loss), params)


def test_a_training_step_has_what_the_formula_says():
    objective, flops = gradient_flops("none")
    assert flops == tiny.BATCH * objective.flops_per_row


def test_full_recomputation_adds_one_forward_pass_of_the_layers():
    objective, flops = gradient_flops("full")
    head = 6 * tiny.VOCABULARY.size * tiny.TRANSFORMER.width * objective.tokens_per_row
    again = (objective.flops_per_row - head) / 3
    assert flops == tiny.BATCH * (objective.flops_per_row + again)
