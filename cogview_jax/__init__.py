"""CogView in JAX: text-to-image transformers, trained, sampled, evaluated and exported.

import cogview_jax
model = cogview_jax.load("runs/demo/bundle")
model.generate(["a red circle"], num_images=4, seed=0)
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`load` and `CogView`, imported when first used: the doors answer `--help` without jax."""
    if name in ("load", "CogView"):
        from cogview_jax import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
