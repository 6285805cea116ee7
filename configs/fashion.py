"""The paper's fashion model: 3 billion parameters, long sequences, three-region sparse attention.

    python -m cogview_jax.prepare --config configs/fashion.py:paper --workdir runs/fashion \\
        --config.data.source.path=my_pictures --config.data.image_tokenizer=runs/codec/bundle
    python -m cogview_jax.train --config configs/fashion.py:paper --workdir runs/fashion

- `paper`: pictures of 800 pixels as 50 x 50 codes; 2,988,387,840 parameters.
- `long`: pictures of 1008 pixels as 63 x 63 codes, 4,096 tokens a row; 2,992,309,760 parameters.
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

VARIANTS = ("paper", "long", "small")


def get_config(variant: str) -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.stage = "transformer"
    config.seed = 0
    config.precision = "bfloat16"
    # Read by precision float16 and float16_pure only.
    config.loss_scale = ConfigDict({"initial": 65536.0, "window": 1000, "minimum": 1.0})
    config.loss_scale.hysteresis = 2
    config.loss_scale.consecutive_hysteresis = False
    config.loss_scale.patience = 100
    config.init_from = ""

    config.train = ConfigDict()
    config.train.steps = 100_000
    config.train.global_batch = 1024
    config.train.accumulate = 1
    config.train.log_every = 10
    config.train.checkpoint_every = 1000
    config.train.keep = 2
    config.train.keep_every = 0
    config.train.keep_best = 0
    config.train.best_metric = "loss"
    config.train.sample_every = 5000

    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.profile = ConfigDict({"after": 10, "steps": 0})

    config.optimizer = ConfigDict()
    config.optimizer.lr = 3e-4
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.95
    config.optimizer.weight_decay = 4e-2
    config.optimizer.warmup = 0.02
    config.optimizer.floor = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.clip = 1.0

    config.vocabulary = ConfigDict({"codes": 8192, "text": 50_000})
    config.layout = ConfigDict({"task": "text_to_image", "text_length": 61, "grid": 50})
    config.text_weight = 1.0
    config.prompt_weight = 1.0
    config.drop_captions = 0.0
    config.code_embeddings = "normal"

    config.model = ConfigDict()
    config.model.layers = 36
    config.model.width = 2560
    config.model.heads = 40
    config.model.mlp_ratio = 4
    config.model.dropout = 0.1
    config.model.attention_dropout = 0.1
    config.model.sandwich_ln = True
    config.model.pb_relax_norm = True
    config.model.pb_relax_attention = True
    config.model.alpha = 32.0
    config.model.embedding_gradient = 0.1
    config.model.epsilon = 1e-5
    config.model.init_deviation = 0.02
    config.model.sandwich_scale = 1.0
    config.model.remat = "full"
    config.model.unroll = 1
    config.model.attention = "sparse"
    config.model.window = 128
    config.model.window_blocks = 6
    config.model.pivots = 768

    config.data = ConfigDict()
    config.data.store = ""
    config.data.image_tokenizer = "runs/codec/bundle"
    config.data.text_tokenizer = ""
    config.data.text = ConfigDict()
    config.data.text.pieces = 50_000
    config.data.text.algorithm = "unigram"
    config.data.text.character_coverage = 0.9995
    config.data.text_records = 1_000_000
    config.data.encode_batch = 16
    config.data.picture_grid = 0
    config.data.shard_size = 8192
    config.data.max_skipped = 0.05
    config.data.source = ConfigDict()
    config.data.source.kind = "folder"
    config.data.source.path = ""
    config.data.source.max_pixels = 100_000_000
    config.data.source.name = ""
    config.data.source.split = ""
    config.data.source.image_key = "image"
    config.data.source.caption_keys = ("captions/text",)
    config.data.source.require_captions = True

    if variant in ("long", "small"):
        # 4097 tokens, of which the last is only predicted.
        config.layout.text_length = 124
        config.layout.grid = 63
    if variant == "small":
        _make_small(config)
    return config


def _make_small(config: ConfigDict) -> None:
    config.precision = "float32"
    config.train.update(
        {"steps": 200, "global_batch": 2, "checkpoint_every": 50, "sample_every": 200}
    )
    config.mesh.update({"data": -1, "fsdp": 1})
    config.optimizer.update({"lr": 1e-3, "weight_decay": 1e-2, "warmup": 0.1})
    config.vocabulary.update({"codes": 512, "text": 512})
    config.model.update({"layers": 4, "width": 256, "heads": 4})
    config.model.update({"dropout": 0.0, "attention_dropout": 0.0})
    config.model.update({"embedding_gradient": 1.0, "init_deviation": 0.06, "sandwich_scale": 0.2})
    config.data.image_tokenizer = "runs/fashion/codec/bundle"
    config.data.text.update({"pieces": 512, "algorithm": "bpe", "character_coverage": 1.0})
    config.data.update({"text_records": 400, "encode_batch": 2, "shard_size": 100})
    config.data.source = ConfigDict()
    config.data.source.kind = "shapes"
    config.data.source.path = "runs/fashion/data"
    config.data.source.max_pixels = 100_000_000
    config.data.source.split = "train"
    config.data.source.size = 252
    config.data.source.train_count = 400
    config.data.source.seed = 0
