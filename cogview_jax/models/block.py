"""One layer of the transformer: attention and an MLP, each a residual branch with LayerNorms."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from cogview_jax.models.activation_max import sow_max
from cogview_jax.models.attention import Attention, AttentionPattern, LayerCache
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.dropout import dropout
from cogview_jax.models.layernorm import LayerNorm
from cogview_jax.models.linear import Linear
from cogview_jax.runtime.precision import FLOAT32, Policy
from cogview_jax.runtime.sharding import constrain


@jax.custom_jvp
def gelu(x: Float[Array | np.ndarray, "*B"]) -> Float[Array, "*B"]:
    """Computes GELU in its tanh form; the arithmetic is float32 and the result has the type of x.

    In float16, x^3 would be infinite from |x| = 41 on, and the gradient would not be a number. The
    backward pass keeps the slope alone, in the type of x.
    """
    return nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    wide = x.astype(jnp.float32)
    y, slope = jax.jvp(
        functools.partial(nn.gelu, approximate=True), (wide,), (jnp.ones_like(wide),)
    )
    return y.astype(x.dtype), slope.astype(x.dtype) * tangent


class MLP(nn.Module):
    """Two affine maps with a GELU (tanh form) between them.

    Attributes:
        hidden: the width between the two maps.
        init_std: the standard deviation of the initial kernel of the first map.
        out_init_std: the standard deviation of the initial kernel of the second map.
        dtype: the type of the arithmetic.
        platform: see `Linear`.
    """

    hidden: int
    init_std: float
    out_init_std: float
    dtype: DTypeLike = jnp.float32
    platform: str = "cpu"

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the MLP to each position by itself."""
        width = x.shape[-1]
        up = Linear(
            (self.hidden,), ("embed", "mlp"), self.init_std, self.dtype, self.platform, name="up"
        )
        down = Linear(
            (width,),
            ("mlp", "embed"),
            self.out_init_std,
            self.dtype,
            self.platform,
            name="down",
        )
        y = constrain(up(x), "batch", "sequence", "mlp")
        return down(gelu(y))


def make_norm(
    config: TransformerConfig, policy: Policy, initial_scale: float = 1.0, name: str | None = None
) -> LayerNorm:
    """Returns a LayerNorm with the relaxation and the types of a model."""
    relax = "row" if config.pb_relax_norm else "none"
    if config.conventions.tensor_norm:
        relax = "tensor"
    return LayerNorm(
        relax, config.epsilon, policy.compute, initial_scale, policy.reductions, name=name
    )


class Block(nn.Module):
    """Computes x + LN(attention(LN(x))), and then x + LN(MLP(LN(x))) of the result.

    This is Sandwich-LN (arXiv 2105.13290, section 2.4). The LayerNorm on the output of a branch
    bounds what each layer adds to the main branch. Without `config.sandwich_ln` it is left out,
    which is Pre-LN. If a "dropout" key is given, dropout acts on the branch before that norm.

    Attributes:
        config: the sizes and switches of the model.
        policy: the types of the arithmetic.
        platform: see `Linear`.
    """

    config: TransformerConfig
    policy: Policy = FLOAT32
    platform: str = "cpu"

    @nn.compact
    def __call__(
        self,
        x: Float[Array | np.ndarray, "B T D"],
        pattern: AttentionPattern,
        cache: LayerCache | None = None,
        index: jax.Array | int = 0,
        valid_mask: Bool[Array | np.ndarray, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache]:
        """Applies the layer.

        Args:
            x: the main branch.
            pattern: see `Attention`.
            cache: see `Attention`.
            index: see `Attention`.
            valid_mask: see `LayerNorm`.

        Returns:
            The main branch after the layer, and the keys and values that were attended to.
        """
        x, config, dtype = jnp.asarray(x), self.config, self.policy.compute
        init_std = config.init_std
        out_init_std = init_std / (2 * config.layers) ** 0.5

        def norm(y: Any, name: str, scale: float = 1.0) -> jax.Array:
            sow_max(self, "norm_inputs", y)
            return make_norm(config, self.policy, scale, name=name)(y, valid_mask)

        def branch_end(y: Any, name: str) -> jax.Array:
            if self.has_rng("dropout"):
                y = dropout(y, config.dropout, self.make_rng("dropout"))
            return norm(y, name, config.sandwich_scale) if config.sandwich_ln else y

        attention = Attention(
            config.heads,
            config.alpha if config.pb_relax_attention else 1.0,
            config.weight_dropout,
            init_std,
            out_init_std,
            self.policy,
            self.platform,
            name="attention",
        )
        y, cache = attention(norm(x, "attention_in"), pattern, cache, index)
        x = x + branch_end(y, "attention_out")
        mlp = MLP(config.hidden, init_std, out_init_std, dtype, self.platform, name="mlp")
        x = x + branch_end(mlp(norm(x, "mlp_in")), "mlp_out")
        sow_max(self, "main", x)
        return constrain(x, "batch", "sequence", "width"), cache
