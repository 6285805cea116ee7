"""Image tokenizers, one file a kind; those that come with the package are known to configs."""

from cogview_jax.tokenizers.codecs import vqgan, vqvae

__all__ = ["vqgan", "vqvae"]
