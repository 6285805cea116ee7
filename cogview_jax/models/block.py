"""One layer of the transformer: attention and MLP, residual branches between two LayerNorms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cogview_jax.models.attention import Attention, KeyValues
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layernorm import LayerNorm
from cogview_jax.models.linear import Linear
from cogview_jax.runtime.sharding import constrain


class MLP(nn.Module):
    """GELU (tanh form) between two affine maps: [B, T, D] -> [B, T, D]."""

    hidden: int
    deviation: float
    output_deviation: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Each position by itself."""
        width = x.shape[-1]
        up = Linear((self.hidden,), ("embed", "mlp"), self.deviation, self.dtype, name="up")
        down = Linear((width,), ("mlp", "embed"), self.output_deviation, self.dtype, name="down")
        y = constrain(up(x), "batch", "sequence", "mlp")
        return down(nn.gelu(y, approximate=True))


class Block(nn.Module):
    """x + LN(attention(LN(x))), then x + LN(MLP(LN(x))): Sandwich-LN (CogView, section 2.4).

    The LayerNorm on a branch's output bounds what each layer adds to the main branch; without
    `sandwich_ln` it is left out, which is Pre-LN. Dropout acts on the branch before that norm,
    where a "dropout" key is given.
    """

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        cache: KeyValues | None = None,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, KeyValues]:
        """x [B, T, D] through the layer; mask, cache and index as in `Attention`."""
        config = self.config
        deviation = config.init_deviation
        output_deviation = deviation / (2 * config.layers) ** 0.5

        def norm(name: str, scale: float = 1.0) -> LayerNorm:
            return LayerNorm(config.pb_relax_norm, config.epsilon, self.dtype, scale, name=name)

        def branch_end(y: jax.Array, name: str) -> jax.Array:
            y = nn.Dropout(config.dropout, deterministic=not self.has_rng("dropout"))(y)
            return norm(name, config.sandwich_scale)(y) if config.sandwich_ln else y

        attention = Attention(
            config.heads,
            config.alpha if config.pb_relax_attention else 1.0,
            config.dropout,
            deviation,
            output_deviation,
            self.dtype,
            name="attention",
        )
        y, cache = attention(norm("attention_in")(x), mask, cache, index)
        x = x + branch_end(y, "attention_out")
        mlp = MLP(config.hidden, deviation, output_deviation, self.dtype, name="mlp")
        x = x + branch_end(mlp(norm("mlp_in")(x)), "mlp_out")
        return constrain(x, "batch", "sequence", "width"), cache
