"""The demo's transformer finetuned to super-resolution, 32 to 64 pixels, minutes on two cores.

It learns as the paper's does, from parts of images: windows of 4 x 4 codes and the same in 8 x 8,
cut out of drawings in 8 x 8 and 16 x 16 codes. An image of 32 pixels is nine such windows. A text
says little of a part, so none is read.

After `make demo`, whose text tokenizer and codec it goes on with:

    python -m cogview_jax.prepare --config configs/demo_superres.py --workdir runs/demo/superres
    python -m cogview_jax.train --config configs/demo_superres.py --workdir runs/demo/superres
"""

from ml_collections import ConfigDict

from cogview_jax.configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.init_from = "runs/demo/bundle"
    config.layout.update(task="super_resolution", text_length=0)
    config.prompt_weight = 0.0  # the small image is always given
    config.train.update(steps=10_000, global_batch=8, log_every=200, checkpoint_every=1000)
    config.train.sample_every = 0
    config.optimizer.muon_lr = 0.0
    config.data.update(image_grid=16, text_tokenizer="runs/demo/tokens/tokenizers/text.model")
    config.data.source.update(size=64, train_count=10_000)
    return config
