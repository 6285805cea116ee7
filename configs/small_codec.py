"""Image tokenizers for a few thousand images of one's own, on two cores or one GPU.

    python -m cogview_jax.train --config configs/small_codec.py:64 --workdir runs/codec \\
        --config.data.source.path=my_images

- `64`: 64 pixels as 8 x 8 codes of 2,048; 12 minutes on two cores, more with other work on them.
- `128`: 128 pixels as 16 x 16 codes of 2,048, with the same layers.

Few codes an image suit a small transformer: see docs/experiments/2026-11-29_few_images.md.
configs/small.py has the transformer that goes with both.
"""

from ml_collections import ConfigDict

VARIANTS = ("64", "128")


def get_config(variant: str = "64") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    return ConfigDict(
        {
            "stage": "image_tokenizer",
            "train": {
                "steps": 4500,
                "global_batch": 16,
                "log_every": 25,
                "checkpoint_every": 250,
                "sample_every": 500,
                "validate_every": 500,
            },
            "optimizer": {"lr": 1e-3, "beta2": 0.99, "weight_decay": 0.0, "warmup": 0.03},
            "model": {
                "image_size": int(variant),
                "channels": (64, 128, 128),
                "residual_blocks": 3,
                "codebook": 2048,
                "code_width": 64,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
            },
            "data": {
                "source": {"kind": "folder", "require_captions": False},
                # Few images: random parts of them, and their mirror images, are more.
                "smallest_crop": 0.75,
                "flip": True,
                "validation_share": 0.03,
            },
        }
    )
