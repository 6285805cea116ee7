"""A transformer for a few thousand captioned images of one's own, on two cores or one GPU.

    python -m cogview_jax.train --config configs/small_codec.py:64 --workdir runs/codec \\
        --config.data.source.path=my_images
    python -m cogview_jax.prepare --config configs/small.py:64 --workdir runs/mine
    python -m cogview_jax.train --config configs/small.py:64 --workdir runs/mine

The images are those of the run runs/codec; `--config.data.from=DIR` names another.

- `64`: 64 pixels, 8 x 8 codes; about an hour on two cores.
- `128`: 128 pixels, 16 x 16 codes; a row takes some five times as long. For a GPU.
"""

from ml_collections import ConfigDict

#: Rows and columns of the codes of an image.
GRIDS = {"64": 8, "128": 16}
VARIANTS = tuple(GRIDS)


def get_config(variant: str = "64") -> ConfigDict:
    if variant not in GRIDS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    return ConfigDict(
        {
            "stage": "transformer",
            "train": {
                "steps": 14_000,
                "global_batch": 32,
                "log_every": 100,
                "checkpoint_every": 500,
                "sample_every": 2000,
                "validate_every": 500,
            },
            "optimizer": {"lr": 3e-3, "weight_decay": 1e-2, "warmup": 0.05},
            "vocabulary": {"codes": 2048, "text": 2000},
            "layout": {"text_length": 32, "grid": GRIDS[variant]},
            "code_embeddings": "codec",
            "drop_captions": 0.1,
            # Of few codes an image, one that is wrong spoils much: the likely ones are drawn best.
            "sampling": {"temperature": 0.5, "guidance": 2.0},
            # A few images are soon learned by heart. Random views, of which some codes are wrong,
            # cannot be told apart by their first codes, so that the caption has to be read.
            "corrupt_codes": 0.1,
            "model": {
                "layers": 6,
                "width": 192,
                "heads": 3,
                "attention_dropout": 0.0,
                "embedding_gradient": 1.0,
                "init_std": 0.07,
                "sandwich_scale": 0.2,
                "remat": "none",
                "unroll": 6,
            },
            "data": {
                "from": "runs/codec",
                "text": {"pieces": 2000, "algorithm": "bpe"},
                "views": 8,
                "smallest_crop": 0.8,
                "source": {"kind": "folder"},
                "validation_share": 0.03,
            },
        }
    )
