"""A transformer for a few thousand captioned images of one's own, on two cores or one GPU.

    python -m cogview_jax.train --config configs/small_codec.py:64 --workdir runs/codec \\
        --config.data.source.path=my_images
    python -m cogview_jax.prepare --config configs/small.py:64 --workdir runs/mine
    python -m cogview_jax.train --config configs/small.py:64 --workdir runs/mine

The images are those of the run runs/codec; `--config.data.from=DIR` names another.
Both variants, `64` and `128`, have 16 x 16 codes and take the same time: an hour on two cores.
"""

from ml_collections import ConfigDict

#: The codes of the image tokenizer in configs/small_codec.py.
CODES = {"64": 1024, "128": 2048}
VARIANTS = tuple(CODES)


def get_config(variant: str = "64") -> ConfigDict:
    if variant not in CODES:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    return ConfigDict(
        {
            "stage": "transformer",
            "train": {
                "steps": 6000,
                "global_batch": 16,
                "log_every": 50,
                "checkpoint_every": 500,
                "sample_every": 1000,
            },
            "optimizer": {"lr": 3e-3, "weight_decay": 1e-2, "warmup": 0.05},
            "vocabulary": {"codes": CODES[variant], "text": 2000},
            "layout": {"text_length": 32, "grid": 16},
            "code_embeddings": "codec",
            "drop_captions": 0.1,
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
                "source": {"kind": "folder"},
            },
        }
    )
