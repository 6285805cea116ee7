"""The official release's tutorial model: 12 layers of width 1024, 211,958,784 parameters.

    python -m cogview_jax.prepare --config configs/tutorial.py --workdir runs/tutorial \\
        --config.data.source.path=my_pictures --config.data.image_tokenizer=runs/codec/bundle
    python -m cogview_jax.train --config configs/tutorial.py --workdir runs/tutorial

One step of it runs on a CPU in a minute or two; training it is work for a GPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.stage = "transformer"
    config.seed = 0
    config.precision = "float32"
    # Read by precision float16 and float16_pure only.
    config.loss_scale = ConfigDict({"initial": 65536.0, "window": 1000, "minimum": 1.0})
    config.loss_scale.hysteresis = 2
    config.loss_scale.consecutive_hysteresis = False
    config.loss_scale.patience = 100
    config.init_from = ""

    config.train = ConfigDict()
    config.train.steps = 20_000
    config.train.global_batch = 12
    # Parts of 3 rows: a step fits into 24 GB of memory.
    config.train.accumulate = 4
    config.train.log_every = 10
    config.train.checkpoint_every = 1000
    config.train.keep = 2
    config.train.keep_every = 0
    config.train.keep_best = 0
    config.train.best_metric = "loss"
    config.train.sample_every = 1000

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.profile = ConfigDict({"after": 10, "steps": 0})

    config.optimizer = ConfigDict()
    config.optimizer.lr = 4e-4
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.95
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.1
    config.optimizer.floor = 0.1
    config.optimizer.clip = 1.0

    config.vocabulary = ConfigDict({"codes": 8192, "text": 50_000})
    config.layout = ConfigDict({"task": "text_to_image", "text_length": 61, "grid": 32})
    config.text_weight = 5.0
    config.prompt_weight = 1.0
    config.drop_captions = 0.0
    config.code_embeddings = "normal"

    config.model = ConfigDict()
    config.model.layers = 12
    config.model.width = 1024
    config.model.heads = 16
    config.model.mlp_ratio = 4
    config.model.dropout = 0.1
    config.model.attention_dropout = 0.1
    config.model.sandwich_ln = True
    config.model.pb_relax_norm = True
    config.model.pb_relax_attention = True
    config.model.alpha = 32.0
    config.model.attention = "dense"
    # Read by sparse attention only.
    config.model.window = 128
    config.model.window_blocks = 6
    config.model.pivots = 768
    config.model.embedding_gradient = 1.0
    config.model.epsilon = 1e-5
    config.model.init_deviation = 0.02
    config.model.sandwich_scale = 1.0
    config.model.remat = "full"
    config.model.unroll = 1

    config.data = ConfigDict()
    config.data.store = ""
    config.data.image_tokenizer = "runs/codec/bundle"
    config.data.text_tokenizer = ""
    config.data.text = ConfigDict()
    config.data.text.pieces = 50_000
    config.data.text.algorithm = "unigram"
    config.data.text.character_coverage = 0.9995
    config.data.text_records = 1_000_000
    config.data.encode_batch = 64
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
    return config
