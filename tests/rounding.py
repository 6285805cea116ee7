"""What a program would compute on a TPU: products that ask for no precision take bfloat16."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def on_tpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, its products in one pass of bfloat16 where it lets the device choose."""

    def call(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _evaluated(closed, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


def _evaluated(closed: Any, arguments: list) -> list:
    """The results of a closed jaxpr without loops."""
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        given, settings = [read(atom) for atom in equation.invars], equation.params
        inner = settings.get("jaxpr", settings.get("call_jaxpr"))
        if inner is not None:
            found = _evaluated(inner, given)
        else:
            if settings.get("precision", HIGHEST) != HIGHEST:
                given = [jnp.asarray(x).astype(jnp.bfloat16).astype(x.dtype) for x in given]
            found = equation.primitive.bind(*given, **settings)
            found = found if equation.primitive.multiple_results else [found]
        values.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
