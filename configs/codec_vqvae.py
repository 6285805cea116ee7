"""The paper's image tokenizer: 256 pixels to 32 x 32 codes of 8192, 512 channels, moving averages.

    python -m cogview_jax.train --config configs/codec_vqvae.py --workdir runs/codec \\
        --config.data.source.path=my_images

The paper names no optimiser, batch or number of steps for this stage; these are our choice.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "stage": "image_tokenizer",
            "train": {
                "steps": 250_000,
                "global_batch": 64,
                # Parts of 8 images, a good gigabyte of activations each.
                "accumulate": 8,
                "log_every": 50,
                "checkpoint_every": 5000,
                "sample_every": 5000,
                "validate_every": 5000,
            },
            "optimizer": {"beta2": 0.99, "weight_decay": 0.0, "warmup": 0.01},
            "data": {
                "source": {"kind": "folder", "require_captions": False},
                "smallest_crop": 0.8,
                "validation_share": 0.01,
            },
        }
    )
