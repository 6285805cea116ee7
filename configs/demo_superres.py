"""The demo's transformer finetuned to super-resolution, 32 to 64 pixels, minutes on two cores.

It learns as the paper's does, from parts of pictures: windows of 4 x 4 codes and the same in 8 x 8,
cut out of drawings in 8 x 8 and 16 x 16 codes. A picture of 32 pixels is nine such windows. A text
says little of a part, so none is read.

After `make demo`, whose text tokenizer and codec it goes on with:

    python -m cogview_jax.prepare --config configs/demo_superres.py --workdir runs/demo/superres
    python -m cogview_jax.train --config configs/demo_superres.py --workdir runs/demo/superres
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
    config.init_from = "runs/demo/bundle"

    config.train = ConfigDict()
    config.train.steps = 10_000
    config.train.global_batch = 8
    config.train.accumulate = 1
    config.train.log_every = 200
    config.train.checkpoint_every = 1000
    config.train.keep = 2
    config.train.keep_every = 0
    config.train.keep_best = 0
    config.train.best_metric = "loss"
    config.train.sample_every = 0

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.profile = ConfigDict({"after": 10, "steps": 0})

    config.optimizer = ConfigDict()
    config.optimizer.lr = 3e-3
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.95
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.05
    config.optimizer.floor = 0.1
    config.optimizer.clip = 1.0

    config.vocabulary = ConfigDict({"codes": 512, "text": 512})
    config.layout = ConfigDict({"task": "super_resolution", "text_length": 0, "grid": 8})
    config.text_weight = 1.0
    # The small picture is given when a larger one is drawn.
    config.prompt_weight = 0.0
    config.drop_captions = 0.0
    config.code_embeddings = "codec"

    config.model = ConfigDict()
    config.model.layers = 4
    config.model.width = 128
    config.model.heads = 4
    config.model.mlp_ratio = 4
    config.model.dropout = 0.0
    config.model.attention_dropout = 0.0
    config.model.sandwich_ln = True
    config.model.pb_relax_norm = True
    config.model.pb_relax_attention = True
    config.model.alpha = 32.0
    config.model.embedding_gradient = 1.0
    config.model.epsilon = 1e-5
    config.model.init_deviation = 0.09
    config.model.sandwich_scale = 0.2
    config.model.remat = "none"
    config.model.unroll = 4

    config.data = ConfigDict()
    config.data.store = ""
    config.data.image_tokenizer = "runs/demo/codec/bundle"
    config.data.text_tokenizer = "runs/demo/tokens/tokenizers/text.model"
    config.data.text = ConfigDict()
    config.data.text.pieces = 512
    config.data.text.algorithm = "bpe"
    config.data.text.character_coverage = 1.0
    config.data.text_records = 4000
    config.data.encode_batch = 64
    config.data.picture_grid = 16
    config.data.shard_size = 2000
    config.data.max_skipped = 0.05
    config.data.source = ConfigDict()
    config.data.source.kind = "shapes"
    config.data.source.path = "runs/demo/data"
    config.data.source.max_pixels = 100_000_000
    config.data.source.split = "train"
    config.data.source.size = 64
    config.data.source.train_count = 10_000
    config.data.source.seed = 0
    return config
