"""Super-resolution of the embedded emoji, 32 to 64 pixels.

It learns as the paper's does, from parts of images: windows of 4 x 4 codes and the same in 8 x 8,
cut out of images in 8 x 8 and 16 x 16 codes. An image of 32 pixels is nine such windows. A text
says little of a part, so none is read. The codes are finer than those of configs/emoji.py, so it
starts from no other model:

    python -m cogview_jax.train --config configs/emoji_codec.py:fine --workdir runs/emoji/fine
    python -m cogview_jax.prepare --config configs/emoji_superres.py --workdir runs/emoji/superres
    python -m cogview_jax.train --config configs/emoji_superres.py --workdir runs/emoji/superres
"""

from ml_collections import ConfigDict

from cogview_jax.configs import emoji


def get_config() -> ConfigDict:
    config = emoji.get_config()
    config.layout.update(task="super_resolution", text_length=0)
    config.vocabulary.codes = 1024
    config.prompt_weight = 0.0  # the small image is always given
    config.drop_captions, config.sampling = 0.0, {}
    config.model.update(layers=4, unroll=4, width=96, heads=3)
    config.train.update(steps=4000, sample_every=0, sample_prompts=())
    # Windows are parts of images already.
    config.data.update(image_grid=16, views=2, smallest_crop=1.0, largest_crop=1.0, flip=True)
    config.data["from"] = "runs/emoji/fine"
    return config
