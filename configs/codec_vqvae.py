"""The paper's image tokenizer: 256 pixels to 32 x 32 codes of 8192, 512 channels, moving averages.

    python -m cogview_jax.train --config configs/codec_vqvae.py --workdir runs/codec \\
        --config.data.source.path=my_pictures

The paper names no optimiser, batch or number of steps for this stage; these are our choice.
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
    config.train.steps = 250_000
    config.train.global_batch = 64
    # Parts of 8 pictures, a good gigabyte of activations each.
    config.train.accumulate = 8
    config.train.log_every = 50
    config.train.checkpoint_every = 5000
    config.train.keep = 2
    config.train.keep_every = 0
    config.train.keep_best = 0
    config.train.best_metric = "loss"
    config.train.sample_every = 5000

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.profile = ConfigDict({"after": 10, "steps": 0})

    config.optimizer = ConfigDict()
    config.optimizer.lr = 3e-4
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.99
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.01
    config.optimizer.floor = 0.1
    config.optimizer.clip = 1.0

    config.model = ConfigDict()
    config.model.image_size = 256
    config.model.downsampling = 8
    config.model.channels = 512
    config.model.residual_blocks = 0
    config.model.codebook = 8192
    config.model.code_width = 256
    config.model.mean = (0.79093, 0.76271, 0.75340)
    config.model.deviation = (0.30379, 0.32279, 0.32800)

    config.loss = ConfigDict({"commitment": 0.25, "decay": 0.99, "revive_below": 0.03})

    config.data = ConfigDict()
    config.data.source = ConfigDict()
    config.data.source.kind = "folder"
    config.data.source.path = ""
    config.data.source.max_pixels = 100_000_000
    config.data.source.name = ""
    config.data.source.split = ""
    config.data.source.image_key = "image"
    config.data.source.caption_keys = ("captions/text",)
    config.data.source.require_captions = False
    config.data.smallest_crop = 0.8
    config.data.flip = False
    config.data.max_skipped = 0.05
    return config
