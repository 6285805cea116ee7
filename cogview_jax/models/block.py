"""One layer of the transformer: attention and MLP, residual branches between two LayerNorms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cogview_jax.models.activation_max import sow_max
from cogview_jax.models.attention import Attention, AttentionPattern, LayerCache
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.dropout import dropout
from cogview_jax.models.layernorm import LayerNorm
from cogview_jax.models.linear import Linear
from cogview_jax.runtime.precision import FLOAT32, Policy
from cogview_jax.runtime.sharding import constrain


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, computed in float32: [...] -> [...] in the type of x.

    x^3 would be infinite in float16 from |x| = 41 on, and the gradient no number. Of its gradient
    the slope alone is kept, in the type of x.
    """
    return nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple, tangents: tuple) -> tuple:
    (x,), (change,) = primals, tangents
    wide = x.astype(jnp.float32)
    y, slope = jax.jvp(
        functools.partial(nn.gelu, approximate=True), (wide,), (jnp.ones_like(wide),)
    )
    return y.astype(x.dtype), slope.astype(x.dtype) * change


class MLP(nn.Module):
    """GELU (tanh form) between two affine maps: [B, T, D] -> [B, T, D]."""

    hidden: int
    init_std: float
    out_init_std: float
    dtype: DTypeLike = jnp.float32
    platform: str = "cpu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Each position by itself."""
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
    """The LayerNorm of a model: which relaxation, and in which types."""
    relax = "row" if config.pb_relax_norm else "none"
    if config.conventions.tensor_norm:
        relax = "tensor"
    return LayerNorm(
        relax, config.epsilon, policy.compute, initial_scale, policy.reductions, name=name
    )


class Block(nn.Module):
    """x + LN(attention(LN(x))), then x + LN(MLP(LN(x))): Sandwich-LN (CogView, section 2.4).

    The LayerNorm on a branch's output bounds what each layer adds to the main branch; without
    `sandwich_ln` it is left out, which is Pre-LN. Dropout acts on the branch before that norm,
    where a "dropout" key is given. platform: see `Linear`.
    """

    config: TransformerConfig
    policy: Policy = FLOAT32
    platform: str = "cpu"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        pattern: AttentionPattern,
        cache: LayerCache | None = None,
        index: jax.Array | int = 0,
        valid_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """x [B, T, D] through the layer; pattern, cache and index as in `Attention`.

        valid_mask: see `LayerNorm`.
        """
        config, dtype = self.config, self.policy.compute
        init_std = config.init_std
        out_init_std = init_std / (2 * config.layers) ** 0.5

        def norm(y: jax.Array, name: str, scale: float = 1.0) -> jax.Array:
            sow_max(self, "norm_inputs", y)
            return make_norm(config, self.policy, scale, name=name)(y, valid_mask)

        def branch_end(y: jax.Array, name: str) -> jax.Array:
            if self.has_rng("dropout"):
                y = dropout(y, config.dropout, self.make_rng("dropout"))
            return norm(y, name, config.sandwich_scale) if config.sandwich_ln else y

        attention = Attention(
            config.heads,
            config.alpha if config.pb_relax_attention else 1.0,
            config.drop_rates[1],
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
