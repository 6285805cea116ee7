"""The emoji transformer finetuned to super-resolution, 32 to 64 pixels, 20 minutes on two cores.

It learns as the paper's does, from parts of images: windows of 4 x 4 codes and the same in 8 x 8,
cut out of images in 8 x 8 and 16 x 16 codes. An image of 32 pixels is nine such windows. A text
says little of a part, so none is read.

After configs/emoji.py, whose text tokenizer and codec it goes on with:

    python -m cogview_jax.prepare --config configs/emoji_superres.py --workdir runs/emoji/superres
    python -m cogview_jax.train --config configs/emoji_superres.py --workdir runs/emoji/superres
"""

from ml_collections import ConfigDict

from cogview_jax.configs import emoji


def get_config() -> ConfigDict:
    config = emoji.get_config()
    config.init_from = "runs/emoji/bundle"
    config.layout.update(task="super_resolution", text_length=0, grid=8)
    config.prompt_weight = 0.0  # the small image is always given
    config.drop_captions = 0.0
    config.train.update(steps=6000, log_every=100, sample_every=0, sample_prompts=())
    config.data.update(image_grid=16, text_tokenizer="runs/emoji/tokens/tokenizers/text.model")
    return config
