"""The emoji transformer finetuned to caption images, by low-rank adapters, 2,000 steps.

After configs/emoji.py, from whose token store it learns:

    python -m cogview_jax.train --config configs/emoji_caption.py --workdir runs/emoji/caption
"""

from ml_collections import ConfigDict

from cogview_jax.configs import emoji


def get_config() -> ConfigDict:
    config = emoji.get_config()
    config.init_from = "runs/emoji/bundle"
    config.lora = {"rank": 16, "alpha": 16.0}
    config.layout.task = "caption"
    config.drop_captions, config.sampling = 0.0, {}
    config.text_weight = 10.0  # few of the tokens, and all that is asked for
    config.corrupt_codes = 0.2
    config.train.update(steps=2000, sample_every=0, sample_prompts=())
    config.data["from"] = "runs/emoji"
    return config
