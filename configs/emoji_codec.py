"""The image tokenizer of the embedded emoji: 64 pixels as 16 x 16 codes of 1,024.

python -m cogview_jax.train --config configs/emoji_codec.py --workdir runs/emoji/codec
"""

from ml_collections import ConfigDict

from cogview_jax.configs import small_codec


def get_config() -> ConfigDict:
    config = small_codec.get_config("64")
    config.data.source = {"kind": "emoji", "require_captions": False}
    return config
