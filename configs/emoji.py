"""A transformer of the embedded emoji: captions in two languages to 16 x 16 codes.

python -m cogview_jax.train --config configs/emoji_codec.py --workdir runs/emoji/codec
python -m cogview_jax.prepare --config configs/emoji.py --workdir runs/emoji
python -m cogview_jax.train --config configs/emoji.py --workdir runs/emoji
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "stage": "transformer",
            "train": {
                "steps": 7000,
                "global_batch": 16,
                "log_every": 50,
                "checkpoint_every": 500,
                "sample_every": 1000,
                "sample_prompts": SAMPLES,
            },
            "optimizer": {"lr": 3e-3, "weight_decay": 1e-2, "warmup": 0.05},
            "vocabulary": {"codes": 1024, "text": 2048},
            "layout": {"text_length": 15, "grid": 16},
            "code_embeddings": "codec",
            "model": {
                "layers": 6,
                "width": 192,
                "heads": 3,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "embedding_gradient": 1.0,
                "init_std": 0.07,
                "sandwich_scale": 0.2,
                "remat": "none",
                "unroll": 6,
            },
            "data": {
                "image_tokenizer": "runs/emoji/codec/bundle",
                "text": {"pieces": 2048, "algorithm": "bpe", "character_coverage": 1.0},
                "source": {"kind": "emoji"},
            },
        }
    )


#: One concept in all styles, of which one was held out, and the other language.
SAMPLES = (
    "butterfly in Noto style",
    "butterfly in flat style",
    "butterfly in 3D style",
    "butterfly in high contrast style",
    "fox in Noto style",
    "fox in flat style",
    "fox in 3D style",
    "fox in high contrast style",
    "Noto风格的蝴蝶",
    "扁平风格的蝴蝶",
    "立体风格的蝴蝶",
    "高对比度风格的蝴蝶",
)
