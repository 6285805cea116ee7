"""An image tokenizer of a mixture: three rows of embedded emoji for one of drawn shapes.

    python -m cogview_jax.train --config configs/mixture_codec.py --workdir runs/mixture

docs/guides/mixtures.md says what a mixture is, and how transformers have one.
"""

from ml_collections import ConfigDict

from cogview_jax.configs import small_codec


def get_config() -> ConfigDict:
    config = small_codec.get_config("64")
    config.data.source = {
        "kind": "mixture",
        "require_captions": False,
        "parts": {
            "emoji": {"source": {"kind": "emoji"}, "weight": 3.0},
            "shapes": {"source": {"kind": "shapes"}, "weight": 1.0},
        },
    }
    return config
