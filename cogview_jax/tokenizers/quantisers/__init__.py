"""Quantisers, one file a family; those that come with the package are known to configs."""

from cogview_jax.tokenizers.quantisers import gumbel, learned, moving_average

__all__ = ["gumbel", "learned", "moving_average"]
