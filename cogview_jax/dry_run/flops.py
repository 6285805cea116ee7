"""The arithmetic of a program, counted from its jaxpr: nothing is compiled or run."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.interpreters import partial_eval


def program_flops(jaxpr: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of a program.

    A multiply-add counts as two; other operations are not counted. The body of a loop counts as
    often as it runs, a conditional counts as its most expensive branch, and recomputed operations
    count every time. The count is of the whole program, whatever the number of devices.

    Args:
        jaxpr: from `jax.make_jaxpr`; closed or not.

    Raises:
        ValueError: a loop of unknown length has such operations.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _product(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += equation.params["length"] * program_flops(equation.params["jaxpr"])
        elif name == "cond":
            total += max(map(program_flops, equation.params["branches"]))
        elif name == "while":
            if any(program_flops(inner) for inner in _inner(equation)):
                raise ValueError("a while loop has matrix products, and its length is unknown")
        else:
            total += sum(map(program_flops, _inner(equation)))
    return total


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in equation.params.values():
        for candidate in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(candidate, "jaxpr", candidate), "eqns"):
                yield candidate


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    """Each output takes as many multiply-adds as the kernel has inputs."""
    kernel = equation.invars[1].aval
    out_features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    positions = equation.outvars[0].aval.size
    # The zeros between the elements of a dilated input need no multiplication.
    dilation = math.prod(equation.params["lhs_dilation"])
    return 2.0 * positions * kernel.size / out_features / dilation


def function_flops(function: Any, *arguments: Any) -> float:
    """`program_flops` of a function for arguments of the given shapes.

    Products that no result depends on are left out, as compilers do: those of the gradients of
    frozen kernels, which a custom gradient computes all the same.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return program_flops(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])
