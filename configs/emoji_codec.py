"""The image tokenizers of the embedded emoji, at 64 pixels.

    python -m cogview_jax.train --config configs/emoji_codec.py --workdir runs/emoji/codec

- `base` (the default): 8 x 8 codes of 2,048, for configs/emoji.py.
- `fine`: 16 x 16 codes of 1,024, for configs/emoji_superres.py.
"""

from ml_collections import ConfigDict

from cogview_jax.configs import small_codec

VARIANTS = ("base", "fine")


def get_config(variant: str = "base") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    config = small_codec.get_config("64")
    config.data.source = {"kind": "emoji", "require_captions": False}
    if variant == "fine":
        config.model.update(downsampling=4, channels=(48, 96), residual_blocks=2, codebook=1024)
        config.train.steps = 2500
    else:
        # With Muon, half the steps of AdamW alone are enough.
        config.train.steps = 2250
        config.optimizer.muon_lr = 3e-3
    return config
