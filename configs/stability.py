"""The paper's stability experiment (Figure 4b): 64 layers, a large learning rate, pure float16.

    make stability

trains the first five in turn and draws what happened; see docs/stability/README.md.

| variant | Sandwich-LN | PB-relax in LayerNorm | PB-relax in attention |
|---|---|---|---|
| `pre_ln` | | | |
| `sandwich_only` | yes | | |
| `plain_attention` | yes | yes | |
| `pb_relax_only` | | yes | yes |
| `both` | yes | yes | yes |

`pre_ln_1024` and so on have the paper's width and are for a GPU of 80 GB; the others have a width
of 128 and take a CPU up to two minutes each. `train` runs any of them like other experiments, on
the token store that `make stability` leaves:

    python -m cogview_jax.train --config configs/stability.py:both --workdir runs/both \\
        --config.data.store=runs/stability/tokens

It stops those whose loss scale sits at its floor, with the step. The paper gives layers, width and
that the learning rate is large; batch, steps and the rate itself are our choice.
"""

from ml_collections import ConfigDict

#: sandwich_ln, pb_relax_norm, pb_relax_attention
SWITCHES = {
    "pre_ln": (False, False, False),
    "sandwich_only": (True, False, False),
    "plain_attention": (True, True, False),
    "pb_relax_only": (False, True, True),
    "both": (True, True, True),
}
WIDE = "_1024"
VARIANTS = (*SWITCHES, *(name + WIDE for name in SWITCHES))


def get_config(variant: str) -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    wide = variant.endswith(WIDE)
    sandwich_ln, pb_relax_norm, pb_relax_attention = SWITCHES[variant.removesuffix(WIDE)]
    return ConfigDict(
        {
            "stage": "transformer",
            "precision": "float16_pure",
            "train": {
                "steps": 150,
                "global_batch": 16 if wide else 4,
                "checkpoint_every": 150,
                "keep": 1,
            },
            # What a step adds to a product grows with width x rate: the same product for both.
            "optimizer": {"lr": 0.01 if wide else 0.08, "warmup": 0.1},
            # Few skipped steps before the first, few after the last: a dead run soon is at the
            # floor.
            "loss_scale": {"initial": 4096.0, "window": 50, "hysteresis": 1, "patience": 5},
            "vocabulary": {"codes": 512, "text": 512},
            "layout": {"text_length": 13, "grid": 8},
            "model": {
                "layers": 64,
                "width": 1024 if wide else 128,
                "heads": 16 if wide else 2,  # heads of width 64, as the paper's are
                "dropout": 0.0,
                "sandwich_ln": sandwich_ln,
                "pb_relax_norm": pb_relax_norm,
                "pb_relax_attention": pb_relax_attention,
                "init_std": 0.03 if wide else 0.09,  # about 1 / sqrt(width)
                "remat": "none",
            },
            "data": {
                "image_tokenizer": "runs/stability/codec/bundle",
                "text": {"pieces": 512, "algorithm": "bpe", "character_coverage": 1.0},
                "text_records": 4000,
                "shard_size": 2000,
                "source": {
                    "kind": "shapes",
                    "path": "runs/stability/data",
                    "size": 32,
                    "train_count": 2000,
                },
            },
        }
    )
