"""The transformer of `make demo`: captions of shapes to 8 x 8 codes, minutes on two cores.

python -m cogview_jax.train --config configs/demo_codec.py --workdir runs/demo/codec
python -m cogview_jax.prepare --config configs/demo.py --workdir runs/demo
python -m cogview_jax.train --config configs/demo.py --workdir runs/demo
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "stage": "transformer",
            "train": {
                "steps": 2100,
                "global_batch": 16,
                "log_every": 50,
                "checkpoint_every": 300,
                "sample_every": 1050,
            },
            # With Muon, half the steps of AdamW alone are enough.
            "optimizer": {"lr": 3e-3, "muon_lr": 7.5e-3, "weight_decay": 1e-2, "warmup": 0.05},
            "vocabulary": {"codes": 512, "text": 512},
            "layout": {"text_length": 13, "grid": 8},
            # Embeddings of similar codes start similar: seen and held-out pairs come out better.
            "code_embeddings": "codec",
            "model": {
                "layers": 4,
                "width": 128,
                "heads": 4,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "embedding_gradient": 1.0,
                "init_std": 0.09,
                "sandwich_scale": 0.2,
                "remat": "none",
                "unroll": 4,
            },
            "data": {
                "image_tokenizer": "runs/demo/codec/bundle",
                "text": {"pieces": 512, "algorithm": "bpe", "character_coverage": 1.0},
                "text_records": 4000,
                "shard_size": 2000,
                "source": {
                    "kind": "shapes",
                    "path": "runs/demo/data",
                    "size": 32,
                    "train_count": 20_000,
                },
            },
        }
    )
