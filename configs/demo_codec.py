"""The image tokenizer of `make demo`: 32-pixel drawings as 8 x 8 codes, minutes on two cores.

python -m cogview_jax.train --config configs/demo_codec.py --workdir runs/demo/codec
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "stage": "image_tokenizer",
            "train": {
                "steps": 450,
                "global_batch": 32,
                "log_every": 25,
                "checkpoint_every": 150,
                "sample_every": 225,
            },
            "optimizer": {
                "lr": 2e-3,
                "muon_lr": 5e-3,
                "beta2": 0.99,
                "weight_decay": 0.0,
                "warmup": 0.03,
            },
            "model": {
                "image_size": 32,
                "downsampling": 4,
                "channels": (32, 128),
                # The paper's model has none; here one lets a code see beyond its own pixels.
                "residual_blocks": 1,
                "codebook": 512,
                "code_width": 64,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
            },
            "data": {
                "source": {
                    "kind": "shapes",
                    "path": "runs/demo/data",
                    "size": 32,
                    "train_count": 20_000,
                    "require_captions": False,
                },
            },
        }
    )
