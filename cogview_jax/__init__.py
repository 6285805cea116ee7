"""CogView in JAX: text-to-image transformers, trained, sampled, evaluated and exported.

import cogview_jax
model = cogview_jax.load("runs/demo/bundle")
model.generate(["a red circle"], num_images=4, seed=0)
"""

__version__ = "0.1.0"


_HOMES = {
    "load": "pipeline.load",
    "CogView": "pipeline.cogview",
    "SamplingConfig": "sampling.options",
    "InputError": "runtime.errors",
}


def __getattr__(name: str):
    """The public names, imported when first used: the commands answer `--help` without jax."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion in a shell."""
    return sorted({*globals(), *_HOMES})
