"""Precision policies: in which types parameters are kept and arithmetic is done."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from cogview_jax.runtime.errors import InputError


@dataclass(frozen=True)
class Policy:
    """The types of one run.

    Reductions (LayerNorm, softmax, loss) are in float32 whatever `compute` is.
    """

    name: str
    parameters: DTypeLike
    compute: DTypeLike


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("float32", jnp.float32, jnp.float32),
        Policy("bfloat16", jnp.float32, jnp.bfloat16),
    )
}


def policy(name: str) -> Policy:
    """The policy called `name`; InputError with the choices where there is none."""
    if name not in POLICIES:
        raise InputError(f"precision {name!r} is unknown; choose from {', '.join(POLICIES)}")
    return POLICIES[name]
