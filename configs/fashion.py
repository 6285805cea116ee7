"""The paper's fashion model: 3 billion parameters, long sequences, three-region sparse attention.

    python -m cogview_jax.prepare --config configs/fashion.py:paper --workdir runs/fashion \\
        --config.data.from=runs/codec
    python -m cogview_jax.train --config configs/fashion.py:paper --workdir runs/fashion

- `paper`: images of 800 pixels as 50 x 50 codes; 2,988,387,840 parameters.
- `long`: images of 1008 pixels as 63 x 63 codes, 4,096 tokens a row; 2,992,309,760 parameters.
- `small`: drawings of shapes, 4,096 tokens a row too; 4,507,392 parameters, for a CPU.

The image tokenizer divides the sides by 16, or by 4 in `small`: configs/codec_vqvae.py with
`--config.model.image_size=800 --config.model.downsampling=16`, and for `small`

    python -m cogview_jax.train --config configs/demo_codec.py --workdir runs/fashion/codec \\
        --config.model.image_size=252 --config.data.source.size=252 \\
        --config.data.source.path=runs/fashion/data --config.data.source.train_count=400 \\
        --config.train.global_batch=2 --config.train.steps=200

The paper's tokenizer is a VQGAN. Of this model it gives the size, the grid and the number of pairs
(10 million); width, batch, schedule and length of the text are our choice.
"""

from ml_collections import ConfigDict

from cogview_jax.configs import cogview_4b

VARIANTS = ("paper", "long", "small")


def get_config(variant: str) -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    config = _small() if variant == "small" else _paper()
    config.model.attention = "sparse"
    if variant in ("long", "small"):
        # 4097 tokens, of which the last is only predicted.
        config.layout = {"text_length": 124, "grid": 63}
    return config


def _paper() -> ConfigDict:
    config = cogview_4b.get_config()
    config.train.update(steps=100_000, global_batch=1024)
    config.layout = {"grid": 50}
    config.model.layers = 36
    config.data.encode_batch = 16
    return config


def _small() -> ConfigDict:
    return ConfigDict(
        {
            "stage": "transformer",
            "train": {"steps": 200, "global_batch": 2, "checkpoint_every": 50, "sample_every": 200},
            "optimizer": {"lr": 1e-3, "weight_decay": 1e-2, "warmup": 0.1},
            "vocabulary": {"codes": 512, "text": 512},
            "model": {
                "layers": 4,
                "width": 256,
                "heads": 4,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "embedding_gradient": 1.0,
                "init_std": 0.06,
                "sandwich_scale": 0.2,
            },
            "data": {
                "image_tokenizer": "runs/fashion/codec/bundle",
                "text": {"pieces": 512, "algorithm": "bpe", "character_coverage": 1.0},
                "text_records": 400,
                "encode_batch": 2,
                "shard_size": 100,
                "source": {
                    "kind": "shapes",
                    "path": "runs/fashion/data",
                    "size": 252,
                    "train_count": 400,
                },
            },
        }
    )
