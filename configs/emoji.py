"""A transformer of the embedded emoji: captions in two languages to 16 x 16 codes.

    python -m cogview_jax.train --config configs/emoji_codec.py --workdir runs/emoji/codec
    python -m cogview_jax.prepare --config configs/emoji.py --workdir runs/emoji
    python -m cogview_jax.train --config configs/emoji.py --workdir runs/emoji

- `base` (the default): 6 layers of width 192, an hour on two cores.
- `small`: the same for 2,000 steps, 20 minutes.
"""

from ml_collections import ConfigDict

VARIANTS = ("base", "small")
#: Concepts in all styles, of each of which training does not see one, and the other language.
SAMPLES = (
    "butterfly in Noto style",
    "butterfly in flat style",
    "butterfly in 3D style",
    "butterfly in high contrast style",
    "fox in Noto style",
    "fox in flat style",
    "fox in 3D style",
    "fox in high contrast style",
    "Noto风格的向日葵",
    "扁平风格的向日葵",
    "立体风格的向日葵",
    "高对比度风格的向日葵",
)


def get_config(variant: str = "base") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    config = ConfigDict(
        {
            "stage": "transformer",
            "train": {
                "steps": 6000,
                "global_batch": 16,
                "log_every": 50,
                "checkpoint_every": 500,
                "sample_every": 1000,
                "sample_prompts": SAMPLES,
            },
            "optimizer": {"lr": 3e-3, "weight_decay": 1e-2, "warmup": 0.05},
            # With more pieces some are whole captions in Chinese, which say nothing of others.
            "vocabulary": {"codes": 1024, "text": 1500},
            "layout": {"text_length": 16, "grid": 16},
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
                "image_tokenizer": "runs/emoji/codec/bundle",
                "text": {"pieces": 1500, "algorithm": "bpe", "character_coverage": 1.0},
                "source": {"kind": "emoji"},
            },
        }
    )
    if variant == "small":
        config.train.update(steps=2000, sample_every=500)
    return config
