"""The image tokenizer of `make demo`: 32-pixel drawings as 8 x 8 codes, minutes on two cores.

python -m cogview_jax.train --config configs/demo_codec.py --workdir runs/demo/codec
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.stage = "image_tokenizer"
    config.seed = 0
    config.precision = "float32"
    # Read by precision float16 and float16_pure only.
    config.loss_scale = ConfigDict({"initial": 65536.0, "window": 1000, "minimum": 1.0})
    config.loss_scale.hysteresis = 2
    config.loss_scale.consecutive_hysteresis = False
    config.loss_scale.patience = 100
    config.init_from = ""

    config.train = ConfigDict()
    config.train.steps = 900
    config.train.global_batch = 32
    config.train.accumulate = 1
    config.train.log_every = 25
    config.train.checkpoint_every = 250
    config.train.keep = 2
    config.train.keep_every = 0
    config.train.keep_best = 0
    config.train.best_metric = "loss"
    config.train.sample_every = 500

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.profile = ConfigDict({"after": 10, "steps": 0})

    config.optimizer = ConfigDict()
    config.optimizer.lr = 2e-3
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.99
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.03
    config.optimizer.floor = 0.1
    config.optimizer.clip = 1.0

    config.model = ConfigDict()
    config.model.image_size = 32
    config.model.downsampling = 4
    config.model.channels = (32, 128)
    # The paper's model has none; at this size one lets a code see beyond its own pixels.
    config.model.residual_blocks = 1
    config.model.codebook = 512
    config.model.code_width = 64
    config.model.mean = (0.5, 0.5, 0.5)
    config.model.deviation = (0.5, 0.5, 0.5)

    config.loss = ConfigDict({"commitment": 0.25, "decay": 0.99, "revive_below": 0.03})

    config.data = ConfigDict()
    config.data.source = ConfigDict()
    config.data.source.kind = "shapes"
    config.data.source.path = "runs/demo/data"
    config.data.source.max_pixels = 100_000_000
    config.data.source.split = "train"
    config.data.source.size = 32
    config.data.source.train_count = 20_000
    config.data.source.seed = 0
    config.data.source.require_captions = False
    config.data.smallest_crop = 1.0
    config.data.flip = False
    config.data.max_skipped = 0.05
    return config
