"""Precision policies: in which types parameters are kept, arithmetic is done and sums are taken."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cogview_jax.runtime.errors import InputError


@dataclass(frozen=True)
class Policy:
    """The types of one run.

    parameters: of the master weights and the optimizer's moments. compute: of activations and
    matrix products. reductions: of attention scores, softmax, and mean and variance in LayerNorm;
    losses and gradients' norms are in float32 whatever it is. A policy that `scales` the loss needs
    a loss scale in training (`training.loss_scale`): float16 has no room for small gradients.
    int8_kernels: whether a trained model's kernels are rounded to 8 bits when they are read
    (`models.quantization`), which is for sampling alone.
    """

    name: str
    parameters: DTypeLike = jnp.float32
    compute: DTypeLike = jnp.float32
    reductions: DTypeLike = jnp.float32
    int8_kernels: bool = False

    @property
    def scales(self) -> bool:
        """Whether gradients need a loss scale."""
        return jnp.dtype(self.compute) == jnp.float16


FLOAT32 = Policy("float32")
POLICIES = {
    policy.name: policy
    for policy in (
        FLOAT32,
        Policy("bfloat16", compute=jnp.bfloat16),
        Policy("float16", compute=jnp.float16),
        # As in arXiv 2105.13290, section 2.4: activations, attention scores, softmax and the inside
        # of LayerNorm are float16, so values outside its range overflow. Master weights and the
        # loss are wider, and so is what a fused kernel keeps to itself: sums, the inside of GELU.
        Policy("float16_pure", compute=jnp.float16, reductions=jnp.float16),
    )
}


#: The name of the policy of kernels in 8 bits.
INT8 = "int8"
#: The names of the policies for sampling.
SAMPLING = (*POLICIES, INT8)


def policy(name: str) -> Policy:
    """The policy called `name`, to train or to sample with.

    Raises:
        InputError: there is none, with the choices; or jax was told to compute in 64 bits, in which
            images would not be those of others.
    """
    return _policy(name, tuple(POLICIES))


def policy_of(dtype: DTypeLike | str) -> Policy:
    """The policy of sampling of a name, or the one that computes in a type and reduces in float32.

    "int8" computes in float32 on CPUs and in bfloat16 elsewhere. InputError as `policy`.
    """
    if isinstance(dtype, str):
        return _policy(dtype, SAMPLING)
    return policy(jnp.dtype(dtype).name)


def _policy(name: str, choices: tuple[str, ...]) -> Policy:
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]  # jax adds it at import
        raise InputError(
            "jax_enable_x64 is on, but this program computes in 32 bits or fewer: switch it off, or"
            " leave JAX_ENABLE_X64 unset"
        )
    if name not in choices:
        alone = f"; {INT8} is for sampling alone" if name == INT8 else ""
        raise InputError(f"precision {name!r} is unknown; choose from {', '.join(choices)}{alone}")
    if name == INT8:
        compute = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return Policy(INT8, compute=compute, int8_kernels=True)
    return POLICIES[name]
