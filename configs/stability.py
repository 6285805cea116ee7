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
    config = ConfigDict()
    config.stage = "transformer"
    config.seed = 0
    config.precision = "float16_pure"
    config.init_from = ""

    config.train = ConfigDict()
    config.train.steps = 150
    config.train.global_batch = 16 if wide else 4
    config.train.accumulate = 1
    config.train.log_every = 10
    config.train.checkpoint_every = 150
    config.train.keep = 1
    config.train.keep_every = 0
    config.train.keep_best = 0
    config.train.best_metric = "loss"
    config.train.sample_every = 0

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.profile = ConfigDict({"after": 10, "steps": 0})

    config.optimizer = ConfigDict()
    # What a step adds to a product grows with width x rate: the same product for both widths.
    config.optimizer.lr = 0.01 if wide else 0.08
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.95
    config.optimizer.weight_decay = 4e-2
    config.optimizer.warmup = 0.1
    config.optimizer.floor = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.clip = 1.0

    # Few skipped steps before the first, and few after the last: a dead run soon sits at the floor.
    config.loss_scale = ConfigDict()
    config.loss_scale.initial = 4096.0
    config.loss_scale.window = 50
    config.loss_scale.minimum = 1.0
    config.loss_scale.hysteresis = 1
    config.loss_scale.consecutive_hysteresis = False
    config.loss_scale.patience = 5

    config.vocabulary = ConfigDict({"codes": 512, "text": 512})
    config.layout = ConfigDict({"task": "text_to_image", "text_length": 13, "grid": 8})
    config.text_weight = 1.0
    config.prompt_weight = 1.0
    config.drop_captions = 0.0
    config.code_embeddings = "normal"

    config.model = ConfigDict()
    config.model.layers = 64
    config.model.width = 1024 if wide else 128
    # Of 64, as the paper's are.
    config.model.heads = 16 if wide else 2
    config.model.mlp_ratio = 4
    config.model.dropout = 0.0
    config.model.sandwich_ln = sandwich_ln
    config.model.pb_relax_norm = pb_relax_norm
    config.model.pb_relax_attention = pb_relax_attention
    config.model.alpha = 32.0
    config.model.embedding_gradient = 0.1
    config.model.epsilon = 1e-5
    # About 1 / sqrt(width).
    config.model.init_deviation = 0.03 if wide else 0.09
    config.model.sandwich_scale = 1.0
    config.model.remat = "none"
    config.model.unroll = 1

    config.data = ConfigDict()
    config.data.store = ""
    config.data.image_tokenizer = "runs/stability/codec/bundle"
    config.data.text_tokenizer = ""
    config.data.text = ConfigDict()
    config.data.text.pieces = 512
    config.data.text.algorithm = "bpe"
    config.data.text.character_coverage = 1.0
    config.data.text_records = 4000
    config.data.encode_batch = 64
    config.data.picture_grid = 0
    config.data.shard_size = 2000
    config.data.max_skipped = 0.05
    config.data.source = ConfigDict()
    config.data.source.kind = "shapes"
    config.data.source.path = "runs/stability/data"
    config.data.source.max_pixels = 100_000_000
    config.data.source.split = "train"
    config.data.source.size = 32
    config.data.source.train_count = 2000
    config.data.source.seed = 0
    return config
