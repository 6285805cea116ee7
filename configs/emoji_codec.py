"""The image tokenizer of the embedded emoji: 64 pixels as 16 x 16 codes of 1,024.

python -m cogview_jax.train --config configs/emoji_codec.py --workdir runs/emoji/codec
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "stage": "image_tokenizer",
            "train": {
                "steps": 2500,
                "global_batch": 16,
                "log_every": 25,
                "checkpoint_every": 250,
                "sample_every": 500,
                "validate_every": 500,
            },
            "optimizer": {"lr": 1e-3, "beta2": 0.99, "weight_decay": 0.0, "warmup": 0.03},
            "model": {
                "image_size": 64,
                "downsampling": 4,
                "channels": (64, 128),
                "residual_blocks": 2,
                "codebook": 1024,
                "code_width": 64,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
            },
            "data": {
                "source": {"kind": "emoji", "require_captions": False},
                # Few images: random parts of them, and their mirror images, are more.
                "smallest_crop": 0.75,
                "flip": True,
                "validation_share": 0.03,
            },
        }
    )
