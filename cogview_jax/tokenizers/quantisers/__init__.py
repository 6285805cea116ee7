"""Quantisers, one file a family; those that come with the package are known to configs."""

from cogview_jax.tokenizers.quantisers import fsq, gumbel, learned, moving_average

__all__ = ["fsq", "gumbel", "learned", "moving_average"]
