"""The paper's fashion model: 3 billion parameters, long sequences, three-region sparse attention.

    python -m cogview_jax.train --config configs/codec_vqgan.py:fashion \\
        --workdir runs/fashion_paper/codec --config.data.source.path=my_images \\
        --config.loss.perceptual=vgg16.ckpt
    python -m cogview_jax.prepare --config configs/fashion.py:paper --workdir runs/fashion_paper \\
        --config.data.source.path=my_images
    python -m cogview_jax.train --config configs/fashion.py:paper --workdir runs/fashion_paper
    python -m cogview_jax.sample --bundle runs/fashion_paper/bundle --task text_to_image \\
        --prompt "a red silk dress" --out runs/fashion_paper/images

- `paper`: images of 800 pixels as 50 x 50 codes of a VQGAN, 2,564 tokens a row;
  2,988,387,840 parameters.
- `long`: images of 1008 pixels as 63 x 63 codes (`--config.model.image_size=1008` for the VQGAN),
  4,096 tokens a row; 2,992,309,760 parameters.
- `small`: Fashion-MNIST, 32 pixels as 8 x 8 codes, for a CPU; 2,886,912 parameters. Attention is
  dense: a row has 83 tokens, fewer than the paper's window alone. For sparse attention all the
  same, in which a query sees the text, 16 to 32 codes before it and a few more at random:
  `--config.model.attention=sparse --config.model.window=16 --config.model.window_blocks=2
  --config.model.pivots=32`.
- `drawings`: drawings of shapes with as many tokens a row as `long`, to measure sparse attention on
  a CPU; 4,507,392 parameters.

For `small`, configs/fashion_codec.py has the image tokenizer:

    python examples/fashion/make.py --out runs/fashion/data
    python -m cogview_jax.train --config configs/fashion_codec.py --workdir runs/fashion/codec
    python -m cogview_jax.prepare --config configs/fashion.py:small --workdir runs/fashion
    python -m cogview_jax.train --config configs/fashion.py:small --workdir runs/fashion

And for `drawings`:

    python -m cogview_jax.train --config configs/demo_codec.py --workdir runs/drawings/codec \\
        --config.model.image_size=252 --config.data.source.size=252 \\
        --config.data.source.path=runs/drawings/data --config.data.source.train_count=400 \\
        --config.train.global_batch=2 --config.train.steps=200

Of its fashion model the paper gives the size, the grid, the VQGAN, sparse attention and the number
of pairs (10 million); width, batch, schedule and length of the text are our choice.
docs/guides/fashion.md says what it takes.
"""

from ml_collections import ConfigDict

from cogview_jax.configs import cogview_4b, small

VARIANTS = ("paper", "long", "small", "drawings")
#: Classes in other tones than most of them have, in both languages.
SAMPLES = (
    "dark narrow dress",
    "light narrow dress",
    "dark T-shirt",
    "light T-shirt",
    "dark wide sneaker",
    "light wide sneaker",
    "深色包",
    "浅色包",
    "灰色大衣",
    "浅色窄款裤子",
    "深色短靴",
    "灰色宽款凉鞋",
)


def get_config(variant: str) -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    if variant == "small":
        return _small()
    config = _drawings() if variant == "drawings" else _paper()
    config.model.attention = "sparse"
    if variant in ("long", "drawings"):
        # 4097 tokens, of which the last is only predicted.
        config.layout = {"text_length": 124, "grid": 63}
    return config


def _paper() -> ConfigDict:
    config = cogview_4b.get_config()
    # Ten times through the pairs.
    config.train.update(steps=100_000, global_batch=1024)
    config.layout = {"grid": 50}
    config.model.layers = 36
    config.data.image_tokenizer = "runs/fashion_paper/codec/bundle"
    config.data.encode_batch = 16
    return config


def _small() -> ConfigDict:
    config = small.get_config("64")
    config.train.update(steps=4000, global_batch=32, sample_prompts=SAMPLES)
    config.vocabulary = {"codes": 512, "text": 400}
    config.layout = {"text_length": 16, "grid": 8}
    config.data["from"] = "runs/fashion/codec"
    # With more pieces some are whole captions in Chinese, which say nothing of others.
    config.data.text.update(pieces=400, character_coverage=1.0)
    return config


def _drawings() -> ConfigDict:
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
                "image_tokenizer": "runs/drawings/codec/bundle",
                "text": {"pieces": 512, "algorithm": "bpe", "character_coverage": 1.0},
                "text_records": 400,
                "encode_batch": 2,
                "shard_size": 100,
                "source": {
                    "kind": "shapes",
                    "path": "runs/drawings/data",
                    "size": 252,
                    "train_count": 400,
                },
            },
        }
    )
